"""The one file that reaches into JAX's internals.

Each hook is a Pallas primitive that adds something the Triton backend cannot say in public terms. Kernels stay right
without any of them, only slower: interpret mode runs none, `without_hooks` leaves some out, so that what they give can
be measured, and one that a new JAX breaks is left out with a warning that names it (`load_words` and `load_near`, where
they break in lowering, are an error that says how to leave them out). So internals, and jax.extend, which promises no
more, are imported where a hook is first used, never with this file. For a broken hook
`tests/pallas_kernels/common/test_hooks.py` fails by name.
"""

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core

HOOKS = ("pipeline_loop", "prefetch_l2", "multiply_add", "launch_dependents", "load_words", "load_near", "load_vectors")

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


def _warn(hook: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    warnings.warn(
        f"hook {hook}: does not work with jax {jax.__version__}, kernels are slower without it ({reason})",
        RuntimeWarning,
        stacklevel=2,
    )


def _hook(make: Callable[[], Any]) -> Callable[[], Any]:
    """Of what makes a hook's primitive: what gives it, made once, or None where it is left out."""
    name = make.__name__.removeprefix("_")

    @functools.cache
    def made():
        try:
            return make()
        except Exception as error:  # whatever a moved or changed internal raises
            _warn(name, error)
            return None

    return lambda: None if name in disabled_hooks() else made()


def _lower(primitive, rule: Callable, instead: Callable) -> None:
    """Lowers a primitive in Triton kernels by a rule, or by another one where that fails."""
    from jax._src.pallas.triton import lowering

    @lowering.register_lowering(primitive)
    def _(ctx, *args, **params):
        try:
            return rule(ctx, *args, **params)
        except Exception as error:
            _warn(primitive.name, error)
            return instead(ctx, *args, **params)


@functools.cache
def _kept_alive():
    """The effect that keeps a primitive without results alive inside a kernel."""
    from jax._src import effects
    from jax._src.pallas import core

    class KeptAlive(effects.Effect):
        pass

    core.kernel_local_effects.add_type(KeptAlive)
    effects.control_flow_allowed_effects.add_type(KeptAlive)
    return KeptAlive()


def _statement(name: str, rule: Callable, *effects):
    """A primitive without results; where its rule fails it is nothing."""
    from jax.extend.core import Primitive

    primitive = Primitive(name)
    primitive.multiple_results = True
    kept = {_kept_alive(), *effects}
    primitive.def_effectful_abstract_eval(lambda *avals, **params: ((), kept))
    _lower(primitive, rule, lambda ctx, *args, **params: [])
    return primitive


@_hook
def _pipeline_loop():
    from jax.extend.mlir import ir

    def rule(ctx, *, num_stages):
        del ctx
        loop = ir.InsertionPoint.current.block.owner
        loop.attributes["tt.num_stages"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), num_stages)
        return []

    return _statement("pipeline_loop", rule)


def pipeline_loop(num_stages: int) -> None:
    """Called in the body of a `fori_loop`: its loads become asynchronous copies to shared memory, pipelined.

    The backend pipelines only loads that feed a `dot`; the loop attribute `tt.num_stages` asks for it elsewhere.

    Args:
        num_stages: blocks in flight, and the one in use.
    """
    if primitive := _pipeline_loop():
        primitive.bind(num_stages=num_stages)


@_hook
def _prefetch_l2():
    from jax._src import state
    from jax._src.lib.triton import dialect
    from jax._src.pallas.triton import gpu_info, lowering
    from jax.extend.mlir import ir

    def rule(ctx, *args, args_tree, num_bytes):
        if gpu_info.get_gpu_info().compute_capability < 90:
            return []
        pointer, transforms = args_tree.unflatten(args)
        address = lowering._compute_pointers_from_indices(pointer, ctx.block_infos[0], transforms[0])
        if isinstance(address, tuple):  # jax 0.12 gives the mask of what is inside beside it
            address = address[0]
        dialect.elementwise_inline_asm(
            [ir.IntegerType.get_signless(32)],
            "{ .reg .pred first; .reg .u32 thread; mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0; "
            f"@first cp.async.bulk.prefetch.L2.global [$1], {num_bytes}; mov.u32 $0, 0; }}",
            constraints="=r,l",
            pure=False,
            packed_element=1,
            args=[address],
        )
        return []

    return _statement("prefetch_l2", rule, state.ReadEffect(0))


def prefetch_l2(ref, num_bytes: int) -> None:
    """One thread asks for bytes to be in the L2 cache, and does not wait (Hopper and later: the copy engine does it).

    Args:
        ref: `some_ref.at[i]`, where they begin; the address is a multiple of 16.
        num_bytes: a multiple of 16.

    Raises:
        TypeError: ref is not of that form.
    """
    if len(getattr(ref, "transforms", ())) != 1:
        raise TypeError(f"prefetch_l2: expected ref.at[i], got {ref}")
    if primitive := _prefetch_l2():
        flat, tree = jax.tree.flatten((ref.ref, ref.transforms))
        primitive.bind(*flat, args_tree=tree, num_bytes=num_bytes)


@_hook
def _multiply_add():
    from jax._src.pallas.triton import lowering
    from jax.extend.core import Primitive
    from jax.extend.mlir.dialects import math

    def rule(ctx, a, b, c):
        del ctx
        return math.fma(a, b, c)

    primitive = Primitive("multiply_add")
    primitive.def_abstract_eval(lambda a, b, c: jax.core.ShapedArray(c.shape, c.dtype))
    _lower(primitive, rule, lowering.lower_fun(lambda a, b, c: a * b + c, multiple_results=False))
    return primitive


def multiply_add(a, b, c):
    """a * b + c in one instruction and one rounding, for floating-point arrays of one shape and dtype.

    The backend compiles a product and a sum as two instructions, each with its own rounding (`mul.rn`, `add.rn`), which
    the assembler must not join.

    Raises:
        TypeError: the operands' shapes or dtypes differ.
    """
    if not a.shape == b.shape == c.shape or not a.dtype == b.dtype == c.dtype:
        operands = ", ".join(f"{x.dtype}{list(x.shape)}" for x in (a, b, c))
        raise TypeError(f"multiply_add: expected operands of one shape and dtype, got {operands}")
    primitive = _multiply_add()
    return primitive.bind(a, b, c) if primitive else a * b + c


@_hook
def _launch_dependents():
    from jax._src.lib.triton import dialect
    from jax._src.pallas.triton import gpu_info

    def rule(ctx):
        del ctx
        if gpu_info.get_gpu_info().compute_capability >= 90:
            dialect.grid_dependency_launch_dependents()
        return []

    return _statement("launch_dependents", rule)


def launch_dependents() -> None:
    """Lets the next kernel's programs start, and wait, once every program of this one has come here (Hopper and later).

    XLA launches Pallas Triton kernels with programmatic dependencies, in command buffers too, and makes each wait at
    its entry for the one before it; without this call the next kernel starts only when this one has ended.
    """
    if primitive := _launch_dependents():
        primitive.bind()


def _loaded(ctx, pointer, offsets, mask, mask_aval):
    """What lies at offsets, an array's IR value; zero where the mask, if there is one, is False."""
    from jax._src.pallas.triton import lowering

    (found,) = ctx.avals_out
    places = lowering._add(lowering._bcast_to(pointer, found.shape), offsets)
    if mask is None:
        return [lowering._load(places)]
    mask = lowering._bcast_to(lowering._ensure_ir_value(mask, mask_aval), found.shape)
    zero = lowering._ensure_ir_value(0, jax.core.ShapedArray((), found.dtype))
    return [lowering._load(places, mask=mask, other=lowering._bcast_to(zero, found.shape))]


def _load(name: str, rule: Callable):
    """A primitive that reads its first argument, a ref, and gives an array of `shape` and `dtype`."""
    from jax._src import state
    from jax.extend.core import Primitive

    def instead(ctx, *args, **params):
        raise NotImplementedError(f'trace the kernel with `without_hooks("{name}")`')

    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_effectful_abstract_eval(
        lambda *avals, args_tree, shape, dtype: ([jax.core.ShapedArray(shape, dtype)], {state.ReadEffect(0)})
    )
    _lower(primitive, lambda ctx, *args, args_tree, **_: rule(ctx, *args, args_tree=args_tree), instead)
    return primitive


@_hook
def _load_words():
    import dataclasses

    from jax._src.lib.triton import dialect
    from jax._src.pallas.triton import lowering
    from jax.extend.mlir import ir

    def rule(ctx, *args, args_tree):
        pointer, transforms, mask = args_tree.unflatten(args)
        (_, _, mask_aval), info = args_tree.unflatten(ctx.avals_in), ctx.block_infos[0]
        *outer, size = info.full_shape_dtype.shape
        words = jax.core.ShapedArray((*outer, size // 4), "int32")
        info = dataclasses.replace(info, full_shape_dtype=words, block_shape=(*info.block_shape[:-1], size // 4))
        integer = ir.IntegerType.get_signless(32)
        space = dialect.PointerType(pointer.type).address_space
        pointer = dialect.bitcast(dialect.PointerType.get(integer, space), pointer)
        offsets = lowering._compute_offsets_from_indices(info, transforms[0])
        if isinstance(offsets, tuple):  # as in `prefetch_l2`; of whole arrays there is no such mask
            offsets = offsets[0]
        return _loaded(ctx, pointer, offsets, mask, mask_aval)

    return _load("load_words", rule)


def load_words(ref, place: Callable[[Any], tuple], start: Any, size: int, mask: Any = None):
    """Loads bytes as words, four neighbours of the last axis each, the first the lowest.

    The backend has no such view of an array, and would load them one by one.

    Args:
        ref: int8 or uint8, the last axis a multiple of 4. place: its indices, of the slice of its last axis.
        start: the first word. size: words. mask: bool of the result's shape, or None; words outside read as 0.

    Returns:
        int32, [..., size].
    """
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plt

    if primitive := _load_words():
        at = ref.at[place(pl.ds(start, size))]
        flat, tree = jax.tree.flatten((at.ref, at.transforms, mask))
        shape = at.transforms[0].get_indexer_shape()
        return primitive.bind(*flat, args_tree=tree, shape=shape, dtype=jnp.dtype("int32"))[0]
    found: Any = 0
    for i in range(4):
        byte = plt.load(
            ref.at[place(pl.ds(4 * start + i, size, stride=4))], mask=mask, other=None if mask is None else 0
        )
        found |= (byte.astype(jnp.int32) & 0xFF) << 8 * i
    return found


@_hook
def _load_near():
    from jax._src.pallas.triton import lowering

    def rule(ctx, *args, args_tree):
        pointer, start, offsets, mask = args_tree.unflatten(args)
        _, start_aval, offsets_aval, mask_aval = args_tree.unflatten(ctx.avals_in)
        pointer = lowering._add(pointer, lowering._ensure_ir_value(start, start_aval))
        return _loaded(ctx, pointer, lowering._ensure_ir_value(offsets, offsets_aval), mask, mask_aval)

    return _load("load_near", rule)


def _flat(ref, start: Any, offsets: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Of all axes together: (start, offsets int32 of that shape)."""
    import jax.numpy as jnp

    flat_start, flat_offsets, stride = jnp.int32(0), jnp.zeros(shape, jnp.int32), 1
    for size, first, along in reversed(list(zip(ref.shape, start, offsets, strict=True))):
        flat_start, flat_offsets = flat_start + first * stride, flat_offsets + along * stride
        stride *= size
    return flat_start, flat_offsets


def load_near(ref, start: Any, offsets: Any, mask: Any = None):
    """Loads `ref[start + offsets]`, element by element, with one address a thread where offsets differ by constants.

    The backend adds the start, which only the program knows, to each offset first, and makes an address of each sum.

    Args:
        ref: of whole arrays, of any rank. start: an index for each of its axes, scalars. offsets: as many, arrays that
            broadcast to the result's shape and hold no number that the program computes. mask: bool of that shape, or
            None; what is outside reads as 0.
    """
    import jax.numpy as jnp

    from pallas_kernels.common.blocks import load_masked

    shape = jnp.broadcast_shapes(*map(jnp.shape, offsets))
    if ref.size < 2**31 and (primitive := _load_near()):
        flat, tree = jax.tree.flatten((ref, *_flat(ref, start, offsets, shape), mask))
        return primitive.bind(*flat, args_tree=tree, shape=shape, dtype=ref.dtype)[0]
    index = (jnp.broadcast_to(first + along, shape) for first, along in zip(start, offsets, strict=True))
    return load_masked(ref.at[tuple(index)], mask)


@_hook
def _load_vectors():
    from jax._src import state
    from jax._src.lib.triton import dialect
    from jax._src.pallas.triton import lowering
    from jax.extend.core import Primitive
    from jax.extend.mlir import ir

    def places(ctx, args, args_tree, more=0):
        """The address of each vector, or of what lies so many of its words behind it."""
        pointer, start, offsets = args_tree.unflatten(args)
        _, start_aval, offsets_aval = args_tree.unflatten(ctx.avals_in)
        pointer = lowering._add(pointer, lowering._ensure_ir_value(start, start_aval))
        if args_tree.unflatten(ctx.avals_in)[0].dtype.itemsize == 1:
            more = 4 * more
        pointer = lowering._add(pointer, lowering._ensure_ir_value(more, jax.core.ShapedArray((), "int32")))
        return lowering._add(
            lowering._bcast_to(pointer, offsets_aval.shape), lowering._ensure_ir_value(offsets, offsets_aval)
        )

    def rule(ctx, *args, args_tree, width):
        words = ir.RankedTensorType.get(ctx.avals_out[0].shape, ir.IntegerType.get_signless(32))
        names = ", ".join(f"${i}" for i in range(width))
        # Elementwise, so that each thread loads what it needs: of a load the backend first decides who has what.
        found = dialect.elementwise_inline_asm(
            [words] * width,
            f"ld.global.v{width}.b32 {{{names}}}, [${width}];",
            constraints=",".join(["=r"] * width + ["l"]),
            pure=True,
            packed_element=1,
            args=[places(ctx, args, args_tree)],
        )
        return list(found)

    def instead(ctx, *args, args_tree, width):
        found, word = [], ir.IntegerType.get_signless(32)
        for i in range(width):
            place = places(ctx, args, args_tree, i)
            kind = ir.RankedTensorType(place.type)
            space = dialect.PointerType(kind.element_type).address_space
            pointers = ir.RankedTensorType.get(kind.shape, dialect.PointerType.get(word, space))
            found.append(lowering._load(dialect.bitcast(pointers, place)))
        return found

    primitive = Primitive("load_vectors")
    primitive.multiple_results = True
    primitive.def_effectful_abstract_eval(
        lambda *avals, args_tree, width: (
            [jax.core.ShapedArray(args_tree.unflatten(avals)[2].shape, "int32")] * width,
            {state.ReadEffect(0)},
        )
    )
    _lower(primitive, rule, instead)
    return primitive


def load_vectors(ref, start: Any, offsets: Any, width: int, *, interpret: bool = False) -> list[jax.Array]:
    """Loads a few words from `ref[start + offsets]` on, in one instruction a thread.

    Each thread loads what it multiplies. A load of the whole would have the backend choose which thread loads what, and
    move it to those that need it, through shared memory and past barriers.

    Args:
        ref: int32, or int8 of which four neighbours are a word, the first the lowest; of whole arrays, the last axis a
            multiple of `width` words. The kernel does not write it.
        start, offsets: as in `load_near`; along the last axis multiples of `width` words. width: 2 or 4 words.

    Returns:
        As many arrays, int32, of the shape that offsets broadcast to.

    Raises:
        ValueError: the width is neither 2 nor 4.
        TypeError: ref is neither int32 nor int8.
    """
    import jax.numpy as jnp
    from jax.experimental.pallas import triton as plt

    if not isinstance(width, int) or width not in (2, 4):
        raise ValueError(f"load_vectors: expected a width of 2 or 4 words, got {width!r}")
    if ref.dtype not in (jnp.int32, jnp.int8):
        raise TypeError(f"load_vectors: expected a ref of int32 or int8, got {ref.dtype}")
    shape = jnp.broadcast_shapes(*map(jnp.shape, offsets))
    primitive = None if interpret or ref.size >= 2**31 else _load_vectors()
    if primitive:
        flat, tree = jax.tree.flatten((ref, *_flat(ref, start, offsets, shape)))
        return primitive.bind(*flat, args_tree=tree, width=width)
    *index, last = (jnp.broadcast_to(first + along, shape) for first, along in zip(start, offsets, strict=True))
    if ref.dtype != jnp.int8:
        return [plt.load(ref.at[(*index, last + i)]) for i in range(width)]
    by_byte = [plt.load(ref.at[(*index, last + i)]).astype(jnp.int32) & 0xFF for i in range(4 * width)]
    return [a | b << 8 | c << 16 | d << 24 for a, b, c, d in zip(*(by_byte[i::4] for i in range(4)), strict=True)]
