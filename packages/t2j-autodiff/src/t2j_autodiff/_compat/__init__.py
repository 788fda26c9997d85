"""What JAX and torch do not promise to keep, and only derivatives or batches use."""

from jax.interpreters import ad as ad
from jax.interpreters import batching as batching

from .attention import math_attention as math_attention
from .autograd_nodes import Node as Node
from .autograd_nodes import has_function as has_function
from .autograd_nodes import has_old_function as has_old_function
from .autograd_nodes import has_own_jvp as has_own_jvp
from .autograd_nodes import is_once_differentiable as is_once_differentiable
from .autograd_nodes import nodes_of as nodes_of
from .batched_mesh_axes import batched_mesh_axes as batched_mesh_axes
from .compiled_functions import as_written as as_written
from .flat_func import flat_vjp as flat_vjp
from .flat_func import flat_vmap as flat_vmap
from .jax_zeros import Zero as Zero
from .jax_zeros import is_zero as is_zero
from .jax_zeros import zero_cotangent as zero_cotangent
from .jax_zeros import zero_tangent as zero_tangent
from .operators import RandomOperations as RandomOperations
from .operators import argument_of as argument_of
from .references import references as references
from .tensors import conj as conj
from .tensors import is_wrapped as is_wrapped
from .tensors import materialised as materialised
from .tensors import unwrapped as unwrapped
from .torch_func import close_forward_level as close_forward_level
from .torch_func import count_forward_nesting as count_forward_nesting
from .torch_func import forward_canary as forward_canary
from .torch_func import forward_level_is_open as forward_level_is_open
from .torch_func import forward_nesting as forward_nesting
from .torch_func import has_tangent as has_tangent
from .torch_func import in_forward_mode as in_forward_mode
from .torch_func import in_transform as in_transform
from .torch_func import open_forward_level as open_forward_level
from .torch_func import prepare_forward_mode as prepare_forward_mode
from .vmap_warnings import silent_loops as silent_loops
