"""What `explain` says of derivatives and batches."""

from __future__ import annotations

from .._base.decisions import BatchKind, Decisions

_VMAPS: dict[BatchKind, str] = {
    "recorded value": "reverse mode of vmap",
    "derivative of a batch": "derivatives of vmap",
    "value beside derivatives": "vmap of the values beside derivatives",
    "vjp": "vmap of reverse mode",
    "jvp": "vmap of forward mode",
    "derivative": "vmap of derivatives",
}


def explained(signature: str, decisions: Decisions) -> list[str]:
    """The lines for one signature."""
    lines = [f"reverse mode{_of(label, signature)}: {what}" for label, what in decisions.residuals.items()]
    if signature not in decisions.forward_modes:
        lines.append("forward mode: torch.func.jvp")
    lines += [f"forward mode{_of(label, signature)}: {what}" for label, what in decisions.forward_modes.items()]
    reason = decisions.vmap_failures.get("value")
    lines.append(f"vmap: {decisions.options.vmap_method}{'' if reason is None else f', one after another ({reason})'}")
    failures = {
        title: decisions.vmap_failures[kind] for kind, title in _VMAPS.items() if kind in decisions.vmap_failures
    }
    return [*lines, *(f"{title}: one after another ({why})" for title, why in failures.items())]


def _of(label: str, signature: str) -> str:
    return label.removeprefix(signature) if label.startswith(signature) else f" of {label}"
