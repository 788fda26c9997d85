"""What is outside the compatibility promises of JAX and torch, and only derivatives or batches need."""

from jax.interpreters import ad as ad
from jax.interpreters import batching as batching

from .forward_levels import close_forward_level as close_forward_level
from .forward_levels import count_forward_nesting as count_forward_nesting
from .forward_levels import forward_canary as forward_canary
from .forward_levels import forward_level_is_open as forward_level_is_open
from .forward_levels import forward_nesting as forward_nesting
from .forward_levels import has_tangent as has_tangent
from .forward_levels import in_forward_mode as in_forward_mode
from .forward_levels import in_transform as in_transform
from .forward_levels import open_forward_level as open_forward_level
from .forward_levels import prepare_forward_mode as prepare_forward_mode
from .jax_zeros import Zero as Zero
from .jax_zeros import is_zero as is_zero
from .jax_zeros import zero_cotangent as zero_cotangent
from .jax_zeros import zero_tangent as zero_tangent
from .loops import silent_loops as silent_loops
from .nodes import conj as conj
from .nodes import has_function as has_function
from .nodes import has_old_function as has_old_function
from .nodes import has_own_jvp as has_own_jvp
from .nodes import is_once_differentiable as is_once_differentiable
from .nodes import is_wrapped as is_wrapped
from .nodes import materialised as materialised
from .nodes import math_attention as math_attention
from .nodes import unwrapped as unwrapped
