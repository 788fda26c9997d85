"""Call PyTorch from JAX as if it were a JAX function: zero-copy, eagerly and under `jax.jit`."""

from importlib.metadata import version as _version

from . import _compat as _compat
from ._convert import j2t as j2t
from ._convert import t2j as t2j
from ._convert import tree_j2t as tree_j2t
from ._convert import tree_t2j as tree_t2j
from ._dtypes import dtype_j2t as dtype_j2t
from ._dtypes import dtype_t2j as dtype_t2j
from ._errors import ArgumentError as ArgumentError
from ._errors import DataDependentShapeError as DataDependentShapeError
from ._errors import DTypeError as DTypeError
from ._errors import ExportError as ExportError
from ._errors import JaxInsideTorchError as JaxInsideTorchError
from ._errors import OutputError as OutputError
from ._errors import PerformanceWarning as PerformanceWarning
from ._errors import ShardingError as ShardingError
from ._errors import T2jError as T2jError
from ._errors import T2jWarning as T2jWarning
from ._errors import TensorEscapeError as TensorEscapeError
from ._errors import TensorMutationError as TensorMutationError
from ._errors import TransformError as TransformError
from ._info import environment_info as environment_info
from ._module import load_variables as load_variables
from ._module import module2jax as module2jax
from ._originals import last_error as last_error
from ._pytree import Size as Size
from ._wrap import TorchFunction as TorchFunction
from ._wrap import torch2jax as torch2jax
from ._wrap import torch2jax_without_vjp as torch2jax_without_vjp

__version__ = _version("t2j-core")
