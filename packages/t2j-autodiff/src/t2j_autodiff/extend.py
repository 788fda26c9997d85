"""For packages that build on t2j-autodiff. Semi-public: it changes with the minor version of t2j-autodiff."""

from ._base.keywords import DiffKeywords as DiffKeywords
from ._base.options import DiffOptions as DiffOptions
from ._wrap.builder import DifferentiableBuilder as DifferentiableBuilder
