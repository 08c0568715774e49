"""The one file that reaches into JAX's internals.

Each hook is a Pallas primitive that adds something the Triton backend cannot say in public terms. Kernels stay right
without any of them, only slower: interpret mode runs none, and `without_hooks` leaves some out, so that what they give
can be measured. `tests/pallas_kernels/common/test_hooks.py` fails by name when a new JAX breaks one.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from jax._src import core as jax_core
from jax._src import effects, state, tree_util
from jax._src.lib.triton import dialect as tt_dialect
from jax._src.pallas import core as pallas_core
from jax._src.pallas.triton import gpu_info, lowering
from jax._src.state import primitives as state_primitives
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import math as math_dialect
from jaxlib.triton import _triton_ops_gen as triton_ops

HOOKS = ("pipeline_loop", "prefetch_l2", "multiply_add", "launch_dependents")

_disabled: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("disabled_hooks", default=frozenset())


@contextlib.contextmanager
def without_hooks(*names: str) -> Iterator[None]:
    """Kernels that are traced within it do without these hooks: other times, the same results but for roundings.

    Part of the cache key of each public function, so it needs no clearing of caches.

    Args:
        names: some of `HOOKS`.

    Raises:
        ValueError: a name is not among them.
    """
    for name in names:
        if name not in HOOKS:
            raise ValueError(f"hooks: expected some of {', '.join(HOOKS)}, got {name!r}")
    token = _disabled.set(_disabled.get() | frozenset(names))
    try:
        yield
    finally:
        _disabled.reset(token)


def disabled_hooks() -> frozenset[str]:
    """Those that kernels traced now do without."""
    return _disabled.get()


class _LoopEffect(effects.Effect):
    """Keeps a primitive without results alive inside a kernel."""


_loop_effect = _LoopEffect()
pallas_core.kernel_local_effects.add_type(_LoopEffect)
effects.control_flow_allowed_effects.add_type(_LoopEffect)

_pipeline_p = jax_core.Primitive("pipeline_loop")
_pipeline_p.multiple_results = True


@_pipeline_p.def_effectful_abstract_eval
def _pipeline_abstract_eval(*, num_stages):
    del num_stages
    return (), {_loop_effect}


@lowering.register_lowering(_pipeline_p)
def _pipeline_lowering(ctx, *, num_stages):
    del ctx
    loop = ir.InsertionPoint.current.block.owner
    loop.attributes["tt.num_stages"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), num_stages)
    return []


def pipeline_loop(num_stages: int) -> None:
    """Called in the body of a `fori_loop`: its loads become asynchronous copies to shared memory, pipelined.

    The backend pipelines only loads that feed a `dot`; the loop attribute `tt.num_stages` asks for it elsewhere.

    Args:
        num_stages: blocks in flight, and the one in use.
    """
    if "pipeline_loop" not in disabled_hooks():
        _pipeline_p.bind(num_stages=num_stages)


_prefetch_p = jax_core.Primitive("prefetch_l2")
_prefetch_p.multiple_results = True


@_prefetch_p.def_effectful_abstract_eval
def _prefetch_abstract_eval(*avals, args_tree, num_bytes):
    del avals, args_tree, num_bytes
    return (), {state.ReadEffect(0), _loop_effect}


@lowering.register_lowering(_prefetch_p)
def _prefetch_lowering(ctx, *args, args_tree, num_bytes):
    if gpu_info.get_gpu_info().compute_capability < 90:
        return []
    pointer, transforms = args_tree.unflatten(args)
    address = lowering._compute_pointers_from_indices(pointer, ctx.block_infos[0], transforms[0])
    tt_dialect.elementwise_inline_asm(
        [ir.IntegerType.get_signless(32)],
        "{ .reg .pred first; .reg .u32 thread; mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0; "
        f"@first cp.async.bulk.prefetch.L2.global [$1], {num_bytes}; mov.u32 $0, 0; }}",
        constraints="=r,l",
        pure=False,
        packed_element=1,
        args=[address],
    )
    return []


def prefetch_l2(ref, num_bytes: int) -> None:
    """One thread asks for bytes to be in the L2 cache, and does not wait (Hopper and later: the copy engine does it).

    Args:
        ref: `some_ref.at[i]`, where they begin; the address is a multiple of 16.
        num_bytes: a multiple of 16.
    """
    if "prefetch_l2" in disabled_hooks():
        return
    root, transforms = state_primitives.get_ref_and_transforms(ref, None, "prefetch_l2")
    flat, tree = tree_util.tree_flatten((root, transforms))
    _prefetch_p.bind(*flat, args_tree=tree, num_bytes=num_bytes)


_multiply_add_p = jax_core.Primitive("multiply_add")


@_multiply_add_p.def_abstract_eval
def _multiply_add_abstract_eval(a, b, c):
    if not a.shape == b.shape == c.shape or not a.dtype == b.dtype == c.dtype:
        raise TypeError(f"multiply_add: expected operands of one shape and dtype, got {a}, {b} and {c}")
    return jax_core.ShapedArray(c.shape, c.dtype)


@lowering.register_lowering(_multiply_add_p)
def _multiply_add_lowering(ctx, a, b, c):
    del ctx
    return math_dialect.fma(a, b, c)


def multiply_add(a, b, c):
    """a * b + c in one instruction and one rounding, for floating-point arrays of one shape and dtype.

    The backend compiles a product and a sum as two instructions, each with its own rounding (`mul.rn`, `add.rn`), which
    the assembler must not join.

    Raises:
        TypeError: the operands' shapes or dtypes differ.
    """
    if "multiply_add" in disabled_hooks():
        return a * b + c
    return _multiply_add_p.bind(a, b, c)


_dependents_p = jax_core.Primitive("launch_dependents")
_dependents_p.multiple_results = True


@_dependents_p.def_effectful_abstract_eval
def _dependents_abstract_eval():
    return (), {_loop_effect}


@lowering.register_lowering(_dependents_p)
def _dependents_lowering(ctx):
    del ctx
    if gpu_info.get_gpu_info().compute_capability >= 90:
        triton_ops.grid_dependency_launch_dependents()
    return []


def launch_dependents() -> None:
    """Lets the next kernel's programs start, and wait, once every program of this one has come here (Hopper and later).

    XLA launches Pallas Triton kernels with programmatic dependencies, in command buffers too, and makes each wait at
    its entry for the one before it; without this call the next kernel starts only when this one has ended.
    """
    if "launch_dependents" not in disabled_hooks():
        _dependents_p.bind()
