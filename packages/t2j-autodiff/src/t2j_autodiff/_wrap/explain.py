"""What `explain` says of derivatives and batches."""

from __future__ import annotations

from t2j_core.extend import listed

from .._base.decisions import BatchKind, Decisions

_VMAPS: dict[BatchKind, str] = {
    "value": "",
    "record": "",
    "value beside derivatives": "",
    "recorded value": ", differentiated",
    "derivative of a batch": ", its derivatives",
    "vjp": ", reverse mode",
    "jvp": ", forward mode",
    "derivative": ", derivatives",
}


def explained(signature: str, decisions: Decisions) -> list[str]:
    """The lines for one signature."""
    lines = [f"reverse mode{_of(label, signature)}: {what}" for label, what in decisions.residuals.items()]
    if signature not in decisions.forward_modes:
        lines.append("forward mode: torch.func.jvp")
    lines += [f"forward mode{_of(label, signature)}: {what}" for label, what in decisions.forward_modes.items()]
    return [*lines, *_batches(decisions)]


def _batches(decisions: Decisions) -> list[str]:
    """How batches ran: a line for each kind of them and each way to run."""
    sizes: dict[tuple[str, str], dict[int, None]] = {}
    for (kind, size), text in list(decisions.batches.items()):
        if kind == "derivative of a batch" and (reason := _not_differentiated(decisions)) is not None:
            text = f"{text}, because PyTorch cannot differentiate the batch ({reason})"
        sizes.setdefault((_VMAPS[kind], text), {})[size] = None
    lines = [f"vmap of {listed(sorted(found))}{what}: {text}" for (what, text), found in sorted(sizes.items())]
    return lines or ["vmap: not used so far"]


def _not_differentiated(decisions: Decisions) -> str | None:
    """Why derivatives of a batch are made of those of its examples."""
    kinds: tuple[BatchKind, ...] = ("derivative of a batch", "recorded value")
    return next((reason for kind in kinds if (reason := decisions.vmap_failure(kind)) is not None), None)


def _of(label: str, signature: str) -> str:
    return label.removeprefix(signature) if label.startswith(signature) else f" of {label}"
