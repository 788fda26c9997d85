"""Call PyTorch from JAX as if it were a JAX function: zero-copy, eagerly and under `jax.jit`."""

from importlib.metadata import version as _version

from . import _compat as _compat
from ._base.dtypes import dtype_j2t as dtype_j2t
from ._base.dtypes import dtype_t2j as dtype_t2j
from ._base.errors import ArgumentError as ArgumentError
from ._base.errors import CommandBufferError as CommandBufferError
from ._base.errors import DataDependentShapeError as DataDependentShapeError
from ._base.errors import DTypeError as DTypeError
from ._base.errors import ExportError as ExportError
from ._base.errors import JaxInsideTorchError as JaxInsideTorchError
from ._base.errors import OutputError as OutputError
from ._base.errors import PerformanceWarning as PerformanceWarning
from ._base.errors import ShardingError as ShardingError
from ._base.errors import T2jError as T2jError
from ._base.errors import T2jWarning as T2jWarning
from ._base.errors import TensorEscapeError as TensorEscapeError
from ._base.errors import TensorMutationError as TensorMutationError
from ._base.errors import TransformError as TransformError
from ._diagnose.info import environment_info as environment_info
from ._run.originals import last_error as last_error
from ._signature.declared import Size as Size
from ._wrap.convert import j2t as j2t
from ._wrap.convert import t2j as t2j
from ._wrap.convert import tree_j2t as tree_j2t
from ._wrap.convert import tree_t2j as tree_t2j
from ._wrap.function import TorchFunction as TorchFunction
from ._wrap.module import load_variables as load_variables
from ._wrap.module import module2jax as module2jax
from ._wrap.torch2jax import torch2jax as torch2jax
from ._wrap.torch2jax import torch2jax_without_vjp as torch2jax_without_vjp

_compat.hide_frames(__file__)

__version__ = _version("t2j-core")
