"""For packages that build on t2j-core: the sister packages, and yours. `docs/extending.md` says how to use it.

Semi-public: it changes with the minor version of t2j-core.
"""

# What a call is: the tree of its arguments, its operands and outputs.
from ._signature.call_tree import CallTree as CallTree
from ._signature.call_tree import split as split
from ._signature.declared import declared_outputs as declared_outputs
from ._signature.signature import Leaf as Leaf
from ._signature.signature import Outputs as Outputs
from ._signature.signature import Signature as Signature
from ._wrap.arguments import leaves_of as leaves_of
from ._wrap.examples import Dtypes as Dtypes
from ._wrap.examples import ExampleValues as ExampleValues

# isort: split
# The call and its primitive: what compiled programs run, and how operands are handed over.
from ._lowering.native import Windows as Windows
from ._lowering.native import current_pair as current_pair
from ._lowering.native import has_windows as has_windows
from ._lowering.primitive import call_primitive as call_primitive
from ._lowering.primitive import torch_call as torch_call
from ._lowering.primitive import torch_call_p as torch_call_p
from ._run.backward_hooks import around_backward as around_backward
from ._run.flat_function import FlatFunction as FlatFunction
from ._run.flat_function import with_copies as with_copies
from ._run.lending import Handover as Handover
from ._run.lending import Lending as Lending
from ._run.rules import Rules as Rules
from ._run.torch_fn import TorchFn as TorchFn

# isort: split
# The builder and its hooks, and the functions that users hold.
from ._wrap.builder import CallBuilder as CallBuilder
from ._wrap.function import P as P
from ._wrap.function import TorchFunction as TorchFunction
from ._wrap.module import functional as functional

# isort: split
# Options of `torch2jax`: the fields, their types in `**options`, and their checks.
from ._base.public import options_of as options_of
from ._base.public import public as public
from ._wrap.keywords import Keywords as Keywords
from ._wrap.keywords import parameters_of as parameters_of
from ._wrap.options import Arguments as Arguments
from ._wrap.options import OptionGroup as OptionGroup
from ._wrap.options import Options as Options
from ._wrap.options import Results as Results
from ._wrap.options import are_at as are_at
from ._wrap.options import argument_numbers as argument_numbers
from ._wrap.options import check_choice as check_choice
from ._wrap.options import check_options as check_options
from ._wrap.options import checked_bool as checked_bool
from ._wrap.options import checked_examples as checked_examples
from ._wrap.options import checked_integer as checked_integer
from ._wrap.options import option_names as option_names
from ._wrap.options import refused as refused
from ._wrap.options import taken as taken

# isort: split
# Runs of a torch function outside of a call: for inference, rehearsals and traces; and what is compiled.
from ._base.progress import progress as progress
from ._base.turns import turns as turns
from ._compat import DispatchMode as DispatchMode
from ._compat import fixed_shapes as fixed_shapes
from ._compat import numbers_in as numbers_in
from ._compat import storage_uses as storage_uses
from ._compat import torch_device as torch_device
from ._compile.graphs import is_lazy as is_lazy
from ._compile.graphs import is_view as is_view
from ._compile.graphs import output_of as output_of
from ._compile.graphs import placeholders as placeholders
from ._compile.refusals import InTurnError as InTurnError
from ._compile.refusals import NotCompiledError as NotCompiledError
from ._compile.refusals import reason_of as reason_of
from ._compile.refusals import warn_not_compiled as warn_not_compiled
from ._compile.tracing import trace as trace
from ._infer.apart import apart as apart
from ._infer.draws import generator_states as generator_states
from ._infer.rng import seeded_by as seeded_by
from ._infer.traced_ahead import is_traced_ahead as is_traced_ahead
from ._modules.in_use import modules_in_use as modules_in_use
from ._random.again import Keys as Keys
from ._random.again import around_backward_of as around_backward_of
from ._run.escapes import check_example as check_example
from ._run.escapes import collect_garbage as collect_garbage
from ._run.escapes import movable_copy as movable_copy
from ._run.escapes import raise_escaped as raise_escaped

# isort: split
# Sharding, and other parts of JAX that differ between versions.
from ._base.dtypes import canonical as canonical
from ._compat import Tracer as Tracer
from ._compat import explicit_spec as explicit_spec
from ._compat import hide_frames as hide_frames
from ._compat import manual_axes as manual_axes
from ._compat import reshard as reshard
from ._compat import transposing_call as transposing_call

# isort: split
# Texts of errors, warnings and `explain()`, and tables of bounded size.
from ._base.bounded import remember as remember
from ._base.errors import describe as describe
from ._base.errors import warn as warn
from ._base.text import listed as listed
from ._base.text import size_of as size_of
from ._wrap.explain import grouped as grouped
from ._wrap.explain import heading as heading
