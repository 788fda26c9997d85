"""The list of known failures: each with its class and its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from runner import Key, Result

KNOWN = Path(__file__).parent / "known_failures.json"
DTYPES = ("float32", "float64", "bfloat16", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")
DTYPES += ("float8_e5m2fnuz", "float8_e8m0fnu")
PACKAGES = ("torch", "jax", "jaxlib", "numpy", "t2j-core", "t2j-autodiff")

# Classes of failures by "operator check: reason". The first match counts; a class that was written by hand stays.
CLASSES = (
    (r": the process died", "crash"),
    (r": the check took", "timeout"),
    (
        r"^(_?native_(batch|layer)_norm|_batch_norm_with_update)\S* forward",
        "torch bug: the meta kernel returns a different shape than the CPU kernel",
    ),
    (r"^tensor_split forward", "data-dependent shape"),
    (r"DataDependentShapeError|DynamicOutputShape|DataDependentOutput", "data-dependent shape"),
    (r": NonDifferentiableError", "no forward mode and no double backward in torch"),
    (r"^as_strided:partial_views", "reads the memory around a view, which a JAX array does not have"),
    (r": DTypeError: The dtype torch.complex32", "JAX has no such dtype"),
    (r"expected target dtype to be Long", "32-bit index inside a function of torch; JAX without x64 has no int64"),
    (r"^nn.CTCLoss forward: .*argument #2 'targets'", "the lengths are data, so the outputs must be declared"),
    (r"^logcumsumexp jvp_vjp", "rounding of torch's forward mode over its pullback, at inputs of 10,000"),
    (r"^nn.functional.layer_norm vmap_vjp", "rounding of torch's own batching rule, at a gradient that is zero"),
)
UNKNOWN = "unclassified"


def load_known() -> dict[str, Any]:
    """The list of known failures, with the versions to which it applies."""
    if not KNOWN.exists():
        return {"versions": {}, "failures": []}
    return json.loads(KNOWN.read_text())


def key_of(entry: dict[str, Any]) -> Key:
    """The key of a listed failure."""
    return entry["op"], entry["column"], entry["check"], entry["sample"]


def differences(results: Sequence[Result], known: dict[str, Any]) -> list[str]:
    """Unlisted failures, and listed ones that pass, as lines of text."""
    listed = {key_of(entry): entry for entry in known["failures"]}
    lines = []
    for r in results:
        text = f"{r.op} {r.column} {r.check} sample {r.sample}"
        if r.outcome == "failed" and r.key not in listed:
            lines.append(f"not listed: {text}: {r.reason}")
        if r.outcome == "passed" and r.key in listed:
            lines.append(f"listed, but passes: {text} ({listed[r.key]['class']})")
    return lines


def record(results: Sequence[Result], known: dict[str, Any]) -> dict[str, Any]:
    """The list in which the failures of this run replace older ones of the same checks."""
    old = {key_of(entry): entry for entry in known["failures"]}
    entries = dict(old)
    for r in results:
        entries.pop(r.key, None)
        if r.outcome == "failed":
            entries[r.key] = entry_of(r, old.get(r.key))
    order = sorted(entries, key=lambda key: (place_of(key[1]), key[0], key[3], key[2]))
    return {"versions": versions(), "failures": [entries[key] for key in order]}


def entry_of(r: Result, old: dict[str, Any] | None) -> dict[str, Any]:
    """The list entry of a failure. A class that was written by hand stays as long as the reason is the same."""
    found = next((name for pattern, name in CLASSES if re.search(pattern, f"{r.op} {r.check}: {r.reason}")), UNKNOWN)
    if old is not None and old["class"] != UNKNOWN and old["reason"][:40] == r.reason[:40]:
        found = old["class"]  # perhaps written by hand
    return {
        "op": r.op,
        "column": r.column,
        "check": r.check,
        "sample": r.sample,
        "class": found,
        "reason": r.reason,
    }


def write_known(known: dict[str, Any]) -> None:
    """Write one line for each failure, so that a diff shows changes."""
    lines = ",\n".join("  " + json.dumps(entry) for entry in known["failures"])
    KNOWN.write_text(f'{{\n "versions": {json.dumps(known["versions"])},\n "failures": [\n{lines}\n ]\n}}\n')


def versions() -> dict[str, str]:
    """The versions of a run."""
    return {name: metadata.version(name) for name in PACKAGES}


def place_of(column: str) -> tuple[int, str]:
    """Where a column stands in lists and tables: by its dtype, and after that of the dtype alone."""
    dtype, _, rest = column.partition(" ")
    return DTYPES.index(dtype), rest
