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
    method, compiles = function.decisions.options.residuals, function.decisions.compiles
    if keeps and function.outs and (method == "graph" or (compiles and method == "auto")):
        traced = TracedFunction.of(function)
        if traced is not None:
            return traced
    if method == "auto" and is_quick:
        function.explain("recompute (few operations on small tensors)")
    elif keeps and not function.outs:
        function.explain("no output can be differentiated")
    elif keeps and method != "recompute":
        return AutogradGraphs(function)
    elif keeps:
        function.explain("recompute")
    return Recompute(function)
