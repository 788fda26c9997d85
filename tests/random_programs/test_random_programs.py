"""Random programs, wrapped and transformed, equal the same programs in `jnp`.

`T2J_EXAMPLES` says how many are tried: few by default, because the soak runs such programs too. With
`nox -s properties` it is many, and faults of the past are planted.
"""

from __future__ import annotations

import os
import random

import planted_faults
import pytest
from hypothesis import HealthCheck, given, settings
from judged_programs import RANDOMS, check, draw_case
from operations import OPERATIONS
from programs import is_array
from transformations import TRANSFORMATIONS

EXAMPLES = int(os.environ.get("T2J_EXAMPLES", "5"))
BUDGET = 600  # examples, within which each fault of the past must be found


# No deadline, because compilations take long; the same examples in every run, so that failures repeat.
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(RANDOMS)
def test_a_program_equals_the_same_in_jnp(r):
    check(draw_case(r))


@pytest.mark.skipif(EXAMPLES < BUDGET, reason="takes minutes: `nox -s properties`")
@pytest.mark.parametrize("name", planted_faults.FAULTS)
def test_a_fault_of_the_past_is_found_again(name):
    assert planted_faults.examples_until_found(planted_faults.FAULTS[name], BUDGET) is not None


def test_everything_is_drawn():
    cases = [draw_case(random.Random(seed)) for seed in range(400)]
    programs = [case.program for case in cases]
    assert {step.operation for program in programs for step in program.steps} == set(OPERATIONS)
    assert {name for case in cases for name in case.names} == set(TRANSFORMATIONS)
    arrays = [leaf for program in programs for leaf in program.leaves if is_array(leaf)]
    assert {0, 1} <= {x.size for x in arrays}
    assert {"bool", "uint8", "bfloat16", "complex64"} <= {str(x.dtype) for x in arrays}
    assert {"nondiff_mask", "nondiff_argnums", "residuals", "vmap_method"} <= {o for p in programs for o in p.options}
    assert any(case.declares for case in cases)
    assert any(program.writes for program in programs)
