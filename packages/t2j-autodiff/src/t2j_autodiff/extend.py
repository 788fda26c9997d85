"""For the sister packages of t2j. Semi-public: it changes with the minor version of t2j-autodiff."""

from ._keywords import DiffKeywords as DiffKeywords
from ._shared import DiffOptions as DiffOptions
