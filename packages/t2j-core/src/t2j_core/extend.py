"""For the sister packages of t2j: the primitive, the function with its signature, and what they are made of.

Semi-public: it changes with the minor version of t2j-core.
"""

from ._apart import apart as apart
from ._arguments import leaves_of as leaves_of
from ._bounded import remember as remember
from ._compat import DispatchMode as DispatchMode
from ._compat import Tracer as Tracer
from ._compat import batched_mesh_axes as batched_mesh_axes
from ._compat import explicit_spec as explicit_spec
from ._compat import hide_frames as hide_frames
from ._compat import manual_axes as manual_axes
from ._compat import numbers_in as numbers_in
from ._compat import reshard as reshard
from ._compat import storage_uses as storage_uses
from ._compat import torch_device as torch_device
from ._compat import torch_gpus as torch_gpus
from ._compat import transposing_call as transposing_call
from ._compat import varying_axes as varying_axes
from ._dtypes import canonical as canonical
from ._errors import describe as describe
from ._errors import warn as warn
from ._explain import grouped as grouped
from ._explain import heading as heading
from ._explain import short_avals as short_avals
from ._keywords import Keywords as Keywords
from ._lending import CLONE as CLONE
from ._module import functional as functional
from ._module_use import modules_in_use as modules_in_use
from ._options import Options as Options
from ._options import are_at as are_at
from ._options import argument_numbers as argument_numbers
from ._options import check_choice as check_choice
from ._options import checked_bool as checked_bool
from ._options import checked_examples as checked_examples
from ._options import checked_integer as checked_integer
from ._options import refused as refused
from ._primitive import call_primitive as call_primitive
from ._primitive import current_pair as current_pair
from ._primitive import torch_call as torch_call
from ._primitive import torch_call_p as torch_call_p
from ._public import options_of as options_of
from ._public import public as public
from ._pytree import argument_paths as argument_paths
from ._pytree import merger as merger
from ._pytree import split as split
from ._randomness import generator_states as generator_states
from ._rng import turns as turns
from ._signature import Leaf as Leaf
from ._signature import Outputs as Outputs
from ._signature import Signature as Signature
from ._signature import declared_outputs as declared_outputs
from ._signature import flat_signature as flat_signature
from ._torchfn import TorchFn as TorchFn
from ._wrap import P as P
from ._wrap import TorchFunction as TorchFunction
