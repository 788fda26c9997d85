"""Which way to get residuals a function takes, by the option `residuals`."""

from __future__ import annotations

from .autograd import AutogradGraphs
from .protocol import DifferentiatedFunction, Residuals
from .recompute import Recompute
from .traced import TracedFunction


def residuals_of(function: DifferentiatedFunction, *, keeps: bool, is_quick: bool) -> Residuals:
    """How the backward of a function gets what its forward has computed.

    `keeps` says whether there is a forward that may keep something; `is_quick` that another run costs little.
    """
    decisions = function.decisions
    method, is_captured = decisions.options.residuals, decisions.is_captured
    if keeps and function.outs and (method == "graph" or (method == "auto" and (decisions.compiles or is_captured))):
        traced = TracedFunction.of(function)
        if traced is not None:
            return traced
    if method == "auto" and is_quick:
        function.explain("recompute (few operations on small tensors)")
    elif keeps and not function.outs:
        function.explain("no output can be differentiated")
    elif keeps and method != "recompute" and is_captured:
        function.explain("recompute (a command buffer keeps no autograd graph)")
    elif keeps and method != "recompute":
        return AutogradGraphs(function)
    elif keeps:
        function.explain("recompute")
    return Recompute(function)
