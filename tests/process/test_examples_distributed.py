"""The examples of parallel training, in one process and in several, and the end of a launch when a process fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from common import ALL

EXAMPLES = Path(__file__).parents[2] / "examples"

# Sums rows. At step 3 a row on the last device of the last process is negative.
FAULTY = """
import _launch

if __name__ == "__main__":
    OPTIONS = _launch.prepare(__doc__)

import os, signal, time
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from t2j_autodiff import torch2jax

def rows_sum(x):
    if not x.is_meta and (x < 0).any():
        FAULT
    return x.sum()

def main():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    f = torch2jax(rows_sum)
    step = jax.jit(jax.shard_map(lambda x: jax.lax.psum(f(x), "data"), mesh=mesh, in_specs=P("data"), out_specs=P()))
    for number in range(6):
        rows = np.ones(mesh.size, np.float32)
        rows[-1] = -1 if number == 3 else 1
        x = jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P("data")), lambda index: rows[index])
        jax.block_until_ready(x)
        if jax.process_index() == 0:
            print("step", number, flush=True)
        jax.block_until_ready(step(x))

if __name__ == "__main__":
    _launch.run(main, OPTIONS)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    set_by_the_examples = ("NPROC", "OMP_NUM_THREADS", "JAX_PLATFORMS", "XLA_FLAGS")
    inherited = {name: value for name, value in os.environ.items() if name not in set_by_the_examples}
    return {**inherited, "PYTHONPATH": str(EXAMPLES)}


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start a script in its own process group, which is killed at the end."""
    started = []

    def start_script(script: Path, *options: str, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(
            subprocess.Popen(command, env=environment | more, text=True, start_new_session=True, **pipes)  # type: ignore
        )
        return started[-1]

    yield start_script
    for process in started:
        if is_alive(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_alive(process: subprocess.Popen[str]) -> bool:
    """Whether a process or any process that it started is still running."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def finish(process: subprocess.Popen[str]) -> str:
    """Return the output of a process. Fail if it takes too long, or if a process that it started is still running."""
    output, _ = process.communicate(timeout=600)
    assert not is_alive(process), output
    return output


@pytest.fixture
def faulty(start: Start, tmp_path: Path) -> Start:
    def start_faulty(fault: str, *options: str) -> subprocess.Popen[str]:
        script = tmp_path / "faulty.py"
        script.write_text(FAULTY.replace("FAULT", fault))
        return start(script, "--devices", "4", *options)

    return start_faulty


ONE_PROCESS = {
    "data_parallel": ("{'data': 8}", "Each holds 68,752 of 68,752 bytes", "step: 1 all-reduce\n"),
    "fsdp": ("{'data': 8}", "Each holds 8,596 of 68,768 bytes", "4 reduce-scatter\n"),
    "tensor_parallel": ("{'data': 4, 'model': 2}", "Each holds 134,672 of 266,768 bytes", "step: 5 all-reduce\n"),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("example", ONE_PROCESS)
def test_one_process_agrees_with_one_device(start: Start, example: str):
    process = start(EXAMPLES / f"{example}.py")
    output = finish(process)
    assert process.returncode == 0, output
    assert "The losses agree with one device's" in output
    for text in ONE_PROCESS[example]:
        assert text in output


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    ("example", "processes"), [("fsdp", 2), ("data_parallel", 2), ("data_parallel", 4), ("tensor_parallel", 2)]
)
def test_several_processes_agree_with_one_device(start: Start, example: str, processes: int):
    process = start(EXAMPLES / f"{example}.py", "--processes", str(processes), "--devices", "4")
    output = finish(process)
    assert process.returncode == 0, output
    assert f"devices in {processes} process(es)" in output
    assert "The losses agree with one device's" in output


@pytest.mark.skipif(not ALL, reason="starts the example of another test once more: T2J_ALL=1 runs it")
def test_an_example_as_a_job_of_slurm(start: Start):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    tasks = [
        start(
            EXAMPLES / "data_parallel.py", "--distributed", JAX_PLATFORMS="cpu", SLURM_PROCID=i, SLURM_LOCALID=i, **job
        )
        for i in "01"
    ]
    outputs = [finish(task) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "devices in 2 process(es)" in outputs[0]
    assert "The losses agree with one device's" in outputs[0]


def test_a_process_that_is_killed_ends_the_launch(faulty: Start):
    process = faulty("os.kill(os.getpid(), signal.SIGKILL)", "--processes", "2")
    output = finish(process)
    assert process.returncode == 1, output
    assert "Process 1 of 2 failed (killed by SIGKILL)" in output


@pytest.mark.thinned(2)
@pytest.mark.parametrize("processes", [2, 1])
def test_an_exception_of_a_torch_function_ends_the_launch_and_is_shown(faulty: Start, processes: int):
    process = faulty("raise ValueError('a negative row')", "--processes", str(processes))
    output = finish(process)  # XLA's own abort, after a minute, says no reason
    assert process.returncode == 1, output
    assert "step 3" in output
    assert "step 4" not in output
    assert "ValueError: a negative row" in output
    if processes == 2:
        assert "Process 1 of 2 failed (exit status 1)" in output


def test_processes_that_take_too_long_are_killed(faulty: Start):
    process = faulty("time.sleep(1000)", "--processes", "2", "--timeout", "6")
    output = finish(process)
    assert process.returncode == 1, output
    assert "Process 1 of 2 exceeded 6 s (still running)" in output


def test_workers_end_with_their_parent(faulty: Start):
    process = faulty("time.sleep(1000)", "--processes", "2")
    assert process.stdout is not None
    while process.stdout.readline() not in ("step 3\n", ""):
        pass
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(process)
