"""What the packages do when they are imported, and at a call: no file, no connection, no process, no unpickling."""

from __future__ import annotations

import subprocess
import sys

WATCH = """
import os, sys
sys.dont_write_bytecode = True
import jax, jax.numpy as jnp, torch
jnp.ones(3) + 1  # starts JAX's backend
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def watch(event, arguments):
    if event == "open" and arguments[2] & WRITES:
        seen.append(f"{event} {arguments[0]}")
    if event.startswith(("socket.", "subprocess.", "pickle.", "urllib.", "os.mkdir", "os.rename", "os.remove")):
        seen.append(f"{event} {arguments}")
    if event in ("os.fork", "os.exec", "os.posix_spawn", "os.system"):
        seen.append(event)

sys.addaudithook(watch)
"""
CALLS = """
import t2j_core, t2j_dist
from t2j_autodiff import torch2jax, module2jax
f = torch2jax(torch.sin)
jax.jit(f)(jnp.ones(3)), jax.grad(f)(1.0), jax.vmap(f)(jnp.ones(3))
apply, variables = module2jax(torch.nn.Linear(3, 3))
jax.block_until_ready(apply(variables, jnp.ones((2, 3))))
"""
SEEN = {  # the event of each statement
    "open('/dev/null', 'w')": "open /dev/null",
    "import pickle; pickle.loads(pickle.dumps(os.path.join))": "pickle.find_class",
    "import socket; socket.socket()": "socket.__new__",
    "import subprocess; subprocess.run(['true'])": "subprocess.Popen",
}


def test_nothing_is_written_sent_or_unpickled():
    assert watched(CALLS) == "[]"


def test_the_watch_sees_what_it_should():
    seen = watched("\n".join(SEEN))
    assert [event for event in SEEN.values() if event not in seen] == []


def watched(program: str) -> str:
    """The events of a program that runs in a process of its own."""
    command = [sys.executable, "-c", WATCH + program + "\nprint(seen)"]
    done = subprocess.run(command, timeout=240, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
