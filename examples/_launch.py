"""Run an example on virtual devices in this process, in several processes of this machine, or on a cluster.

    python examples/data_parallel.py                   # 8 virtual CPU devices in one process
    python examples/data_parallel.py --processes 4     # 4 processes on this machine, 2 devices each
    srun --kill-on-bad-exit python examples/data_parallel.py --distributed

If a process fails, all processes stop at once and the reason is printed. Otherwise they would wait in a collective.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

LINES = 30  # lines of a failed process's output that are shown


class Worker(NamedTuple):
    """A started process, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path


def prepare(description: str | None) -> argparse.Namespace:
    """Read the command line. Call it before JAX and torch are imported, and pass the result to `run`.

    With `--processes` the parent does not return: it starts the same command again for each worker, waits, and exits,
    with status 1 if a worker failed or took too long. `--help` shows `description`.
    """
    options = _options(description)
    if options.processes > 1 and options.worker is None:
        raise SystemExit(_run_workers(options))
    os.environ.setdefault("NPROC", "64")  # threads of XLA's pool: virtual devices need more threads than cores
    if not options.distributed:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return options


def run(train: Callable[[], None], options: argparse.Namespace) -> None:
    """Set up JAX's devices and processes, and call `train`."""
    _set_up(options)
    threading.Thread(target=_leave_when_torch_raises, daemon=True).start()
    try:
        train()
    except BaseException as error:
        import jax

        if jax.process_count() == 1:
            raise
        _leave(error)


def _options(description: str | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=layout)
    parser.add_argument("--devices", type=int, default=8, help="virtual CPU devices, of all processes together")
    parser.add_argument("--processes", type=int, default=1, help="processes to start on this machine")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which they are killed")
    parser.add_argument("--distributed", action="store_true", help="this is one process of a cluster's job")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes < 1 or options.devices % options.processes:
        parser.error(f"{options.devices} devices cannot be split evenly over {options.processes} processes")
    return options


def _set_up(options: argparse.Namespace) -> None:
    """Configure JAX's devices and processes. JAX must not have been used before."""
    import jax  # imported here because the parent needs neither
    import torch

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if options.distributed:
        jax.distributed.initialize()  # reads the rest from SLURM, Kubernetes and others
        return
    jax.config.update("jax_num_cpu_devices", options.devices // options.processes)
    torch.set_num_threads(1)  # each device already has a thread
    if options.worker is not None:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        sys.stdout = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # gloo prints each of its connections to the standard output
        jax.distributed.initialize(options.coordinator, options.processes, options.worker)


def _leave_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nobody writes to this pipe: `read` returns when the parent has ended
    os._exit(1)


def _leave_when_torch_raises() -> None:
    """Report an exception of a torch function even if the main thread never does.

    The device that raised does not join the collective in which the others wait, and JAX raises its error only when
    all devices have finished. XLA aborts after a minute without a reason; gloo waits forever.
    """
    from t2j_autodiff import last_error

    while (error := last_error()) is None:
        time.sleep(0.2)
    _leave(error)


def _leave(error: BaseException) -> NoReturn:
    """Exit at once. A normal exit of `jax.distributed` waits for the other processes, which wait for this one."""
    traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _run_workers(options: argparse.Namespace) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = [_start(i, coordinator, Path(folder)) for i in range(options.processes)]
        for worker in workers:
            stack.callback(_stop, worker)
        return _wait(workers, options.timeout)


def _start(index: int, coordinator: str, folder: Path) -> Worker:
    """Start a worker. The standard output of process 0 goes to the terminal, all other output to a file."""
    log = folder / f"{index}.log"
    command = [sys.executable, *sys.argv, "--worker", str(index), "--coordinator", coordinator]
    with log.open("wb") as output:
        stdout = None if index == 0 else output
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=output)
    return Worker(process, log)


def _stop(worker: Worker) -> None:
    worker.process.kill()  # SIGKILL: `jax.distributed` catches SIGTERM
    worker.process.communicate()


def _wait(workers: list[Worker], timeout: float) -> int:
    """Return 0 when all workers have succeeded, or 1 as soon as one has failed or `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while True:
        codes = [worker.process.poll() for worker in workers]
        if failed := [i for i, code in enumerate(codes) if code]:
            return _report(workers, failed, "failed")
        if all(code == 0 for code in codes):
            return 0
        if time.monotonic() > deadline:
            return _report(workers, [i for i, code in enumerate(codes) if code is None], f"exceeded {timeout:g} s")
        time.sleep(0.05)


def _report(workers: list[Worker], chosen: list[int], what: str) -> int:
    for index in chosen:
        status = _status(workers[index].process.returncode)
        print(f"Process {index} of {len(workers)} {what} ({status}). The end of its output:", file=sys.stderr)
        lines = workers[index].log.read_text(errors="replace").splitlines()
        print(*(f"    {line}" for line in lines[-LINES:]), sep="\n", file=sys.stderr)
    print("All processes were stopped.", file=sys.stderr, flush=True)
    return 1


def _status(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
