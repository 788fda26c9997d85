"""For the sister packages of t2j. Semi-public: it changes with the minor version of t2j-autodiff."""

from ._base.keywords import DiffKeywords as DiffKeywords
from ._base.options import DiffOptions as DiffOptions
