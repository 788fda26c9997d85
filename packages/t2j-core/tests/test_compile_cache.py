"""What `compile=True` has compiled is on disk for later processes, also if one dies as it compiles."""

from __future__ import annotations

import signal

import pytest
from common import ALL, run_python
from t2j_core import _compat

pytestmark = [
    pytest.mark.skipif(not _compat.can_compile, reason="torch before 2.9 does not compile functions"),
    pytest.mark.skipif(not ALL, reason="starts the compiler three times, which takes half a minute: T2J_ALL=1 runs it"),
]

COMPILE = """
    import os, signal, sys
    import jax.numpy as jnp, torch
    from t2j_core import torch2jax
    from torch._inductor import cpp_builder
    from torch._dynamo.utils import counters

    if sys.argv[1] == "dies":
        for name in ("run_compile_cmd", "_run_compile_cmd"):
            if hasattr(cpp_builder, name):
                setattr(cpp_builder, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    y = torch2jax(lambda x: torch.sin(x) * 1.5, compile=True)(jnp.ones(3))
    assert abs(float(y[0]) - 1.2622) < 1e-3
    print("hits", counters["inductor"]["fxgraph_cache_hit"])
"""


def test_later_processes_find_it_also_after_one_has_died(tmp_path):
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    assert run_python(COMPILE, "dies", check=False, **cache).returncode == -signal.SIGKILL
    assert "hits 0" in run_python(COMPILE, "compiles", **cache).stdout
    assert "hits 1" in run_python(COMPILE, "finds", **cache).stdout
