"""Call PyTorch functions from JAX on sharded arrays."""

from importlib.metadata import version as _version

from t2j_core import ArgumentError as ArgumentError
from t2j_core import CommandBufferError as CommandBufferError
from t2j_core import DataDependentShapeError as DataDependentShapeError
from t2j_core import DTypeError as DTypeError
from t2j_core import ExportError as ExportError
from t2j_core import JaxInsideTorchError as JaxInsideTorchError
from t2j_core import OutputError as OutputError
from t2j_core import PerformanceWarning as PerformanceWarning
from t2j_core import ShardingError as ShardingError
from t2j_core import Size as Size
from t2j_core import T2jError as T2jError
from t2j_core import T2jWarning as T2jWarning
from t2j_core import TensorEscapeError as TensorEscapeError
from t2j_core import TensorMutationError as TensorMutationError
from t2j_core import TorchFunction as TorchFunction
from t2j_core import TransformError as TransformError
from t2j_core import dtype_j2t as dtype_j2t
from t2j_core import dtype_t2j as dtype_t2j
from t2j_core import environment_info as environment_info
from t2j_core import j2t as j2t
from t2j_core import last_error as last_error
from t2j_core import load_variables as load_variables
from t2j_core import t2j as t2j
from t2j_core import tree_j2t as tree_j2t
from t2j_core import tree_t2j as tree_t2j

from ._function import ShardedFunction as ShardedFunction
from ._torch2jax import module2jax as module2jax
from ._torch2jax import torch2jax as torch2jax
from ._torch2jax import torch2jax_with_vjp as torch2jax_with_vjp
from ._torch2jax import torch2jax_without_vjp as torch2jax_without_vjp

__version__ = _version("t2j-dist")
