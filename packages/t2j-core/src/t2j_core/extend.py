"""For the sister packages of t2j: the primitive, the function with its signature, and what they are made of.

Semi-public: it changes with the minor version of t2j-core.
"""

from ._compat import vary_alike as vary_alike
from ._primitive import torch_call as torch_call
from ._primitive import torch_call_p as torch_call_p
from ._signature import Leaf as Leaf
from ._signature import Outputs as Outputs
from ._signature import Signature as Signature
from ._torchfn import TorchFn as TorchFn
from ._wrap import Options as Options
from ._wrap import TorchFunction as TorchFunction
