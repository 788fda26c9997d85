"""Differences between versions of JAX and torch, and every use of their private API.

Features are detected; only `versions` compares version numbers. To drop support for a version, delete the branches
whose comments name it. `jax_*` is about JAX, `torch_*` about torch, `dlpack` about both.
"""

from jax.core import ShapedArray as ShapedArray
from jax.core import Tracer as Tracer
from jax.extend.core import Primitive as Primitive
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters import mlir as mlir

from . import versions as versions  # first: it refuses versions that are too old
from .dlpack import array_over as array_over
from .dlpack import crosses_as_bytes as crosses_as_bytes
from .dlpack import torch_exchange_api as torch_exchange_api
from .dlpack import with_foreign_memory as with_foreign_memory
from .jax_caches import forget_eager_primitives as forget_eager_primitives
from .jax_caches import hold_weakly as hold_weakly
from .jax_frames import hide_frames as hide_frames
from .jax_frames import reducing_call as reducing_call
from .jax_frames import transposing_call as transposing_call
from .jax_lowering import devices_of as devices_of
from .jax_lowering import is_exporting as is_exporting
from .jax_lowering import is_partly_manual as is_partly_manual
from .jax_lowering import keep_alive as keep_alive
from .jax_lowering import named as named
from .jax_lowering import pair_attributes as pair_attributes
from .jax_lowering import platforms_of as platforms_of
from .jax_lowering import register_lowering as register_lowering
from .jax_lowering import whole_mesh as whole_mesh
from .jax_primitives import XLA_ERRORS as XLA_ERRORS
from .jax_primitives import register_checkify as register_checkify
from .jax_primitives import register_dce as register_dce
from .jax_primitives import register_jet as register_jet
from .jax_primitives import side_effects as side_effects
from .jax_sharding import explicit_spec as explicit_spec
from .jax_sharding import manual_axes as manual_axes
from .jax_sharding import reshard as reshard
from .jax_sharding import result_aval as result_aval
from .jax_sharding import vary_alike as vary_alike
from .jax_sharding import varying_axes as varying_axes
from .jax_tracing import after_fork as after_fork
from .jax_tracing import check_jax_is_allowed as check_jax_is_allowed
from .jax_tracing import is_concrete_array as is_concrete_array
from .jax_tracing import jax_has_run as jax_has_run
from .jax_tracing import mesh_axis_sizes as mesh_axis_sizes
from .jax_tracing import refusing_jax as refusing_jax
from .torch_devices import current_stream as current_stream
from .torch_devices import is_default_generator as is_default_generator
from .torch_devices import record_event as record_event
from .torch_devices import set_stream as set_stream
from .torch_devices import torch_device as torch_device
from .torch_devices import torch_gpus as torch_gpus
from .torch_devices import wait_for_event as wait_for_event
from .torch_memory import is_owned_by_torch as is_owned_by_torch
from .torch_memory import learn_storage_layout as learn_storage_layout
from .torch_memory import storage_of as storage_of
from .torch_memory import storage_uses as storage_uses
from .torch_modes import DispatchMode as DispatchMode
from .torch_modes import FunctionMode as FunctionMode
from .torch_modes import dynamo_is_loaded as dynamo_is_loaded
from .torch_modes import fake_mode as fake_mode
from .torch_modes import has_data as has_data
from .torch_modes import has_meta_storage as has_meta_storage
from .torch_modes import without_addresses as without_addresses
from .torch_modes import without_compilation as without_compilation
from .torch_modes import without_log_of_fake_tensors as without_log_of_fake_tensors
from .torch_state import autocast_depth as autocast_depth
from .torch_state import close_abandoned_forward_level as close_abandoned_forward_level
from .torch_state import default_torch_state as default_torch_state
from .torch_state import is_transformed as is_transformed
from .torch_state import profiled as profiled
from .torch_state import state_getters as state_getters
from .torch_state import watch_forward_levels as watch_forward_levels
from .torch_values import TAKES_INT32_IN_GATHER as TAKES_INT32_IN_GATHER
from .torch_values import numbers_in as numbers_in
from .torch_values import registered_with_torch as registered_with_torch
from .versions import JAX_FLOOR as JAX_FLOOR
from .versions import TORCH_FLOOR as TORCH_FLOOR
