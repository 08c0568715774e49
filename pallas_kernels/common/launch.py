"""One way to launch a Pallas Triton kernel, and the guarded form of it that the tests use."""

import contextlib
import contextvars
import types
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.common import checks, hooks

GUARD_ROWS = 3
"""Rows of sentinels after each buffer of a guarded launch."""

_guarded = contextvars.ContextVar("guarded", default=False)


@contextlib.contextmanager
def guarded():
    """Within it, every launch reads inputs that end in NaN and writes outputs that start as NaN and end in sentinels.

    A kernel that reads past an input, leaves an element of its output unwritten or writes past its output then
    returns NaN. The mode is part of the cache key of each public function, so it needs no clearing of caches.
    """
    token = _guarded.set(True)
    try:
        yield
    finally:
        _guarded.reset(token)


def is_guarded() -> bool:
    return _guarded.get()


def launch_dependents(interpret: bool) -> None:
    """From here on the next kernel's programs may take the places that this one's leave; they wait for its end.

    Called at the start by kernels of few programs, and by those of many when a program's own loads are done: earlier,
    the next kernel's programs would crowd in among those that still have work to do.
    """
    if not interpret:
        hooks.launch_dependents()


def launch(
    kernel: Callable,
    *,
    name: str,
    grid: tuple[int, ...],
    inputs: dict[str, jax.Array | None],
    outputs: Sequence[jax.ShapeDtypeStruct],
    num_warps: int,
    num_stages: int,
    aliases: dict[str, int] | None = None,
    interpret: bool = False,
) -> list[jax.Array]:
    """Calls `kernel(input_refs, *output_refs)` over `grid`, every ref a whole array in device memory.

    Args:
        inputs: by name; the kernel finds the ref of each under its name in a namespace, None for one that is None.
        aliases: the name of an input to the index of the output that takes over its buffer.
        interpret: run the kernel's jaxpr on any backend instead of compiling it with Triton.

    Raises:
        ValueError, TypeError: an argument's type or value is wrong; the message names it.
    """
    checks.instance("name", name, str)
    checks.instance("grid", grid, tuple, " of whole numbers")
    for axis, size in enumerate(grid):
        checks.whole(f"grid[{axis}]", size, 1)
    checks.instance("inputs", inputs, dict, " of arrays by name")
    for key, array in inputs.items():
        if array is not None:
            checks.array(f"inputs[{key!r}]", array)
    checks.instance("outputs", outputs, Sequence, " of jax.ShapeDtypeStruct")
    for index, out in enumerate(outputs):
        checks.array(f"outputs[{index}]", out)
    checks.whole("num_warps", num_warps, 1)
    checks.whole("num_stages", num_stages, 1)
    if aliases is not None:
        checks.instance("aliases", aliases, dict, " of output indices by name")
    for key, index in (aliases or {}).items():
        if inputs.get(key) is None or index not in range(len(outputs)):
            raise ValueError(f"aliases: expected an input and the index of an output, got {key!r} and {index!r}")
    names = [key for key, array in inputs.items() if array is not None]
    arrays = [array for array in inputs.values() if array is not None]
    indices = {names.index(key): output for key, output in (aliases or {}).items()}
    outputs = list(outputs)
    sizes = [out.shape[0] for out in outputs]
    if is_guarded():
        arrays = [_with_tail(x) for x in arrays]
        outputs = [jax.ShapeDtypeStruct((out.shape[0] + GUARD_ROWS, *out.shape[1:]), out.dtype) for out in outputs]
        for index, out in enumerate(outputs):
            if index not in indices.values():
                indices[len(arrays)] = index
                arrays.append(jnp.full(out.shape, _sentinel(out.dtype), out.dtype))

    def body(*refs):
        found = dict(zip(names, refs, strict=False))
        kernel(types.SimpleNamespace(**{key: found.get(key) for key in inputs}), *refs[len(arrays) :])

    body.__name__ = name  # becomes the name of the kernel in the module and in profiles
    any_spec = pl.BlockSpec(memory_space=pl.ANY)
    results = pl.pallas_call(
        body,
        grid=grid,
        in_specs=[any_spec] * len(arrays),
        out_specs=[any_spec] * len(outputs),
        out_shape=outputs,
        input_output_aliases=indices,
        compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=interpret,
        name=name,
    )(*arrays)
    if is_guarded():
        results = [_without_tail(x, size) for x, size in zip(results, sizes, strict=True)]
    return list(results)


def _sentinel(dtype):
    return jnp.nan if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


def _with_tail(x):
    tail = jnp.full((GUARD_ROWS, *x.shape[1:]), _sentinel(x.dtype), x.dtype)
    return jnp.concatenate([x, tail])


def _without_tail(x, size):
    value, tail = x[:size], x[size:]
    sentinel = _sentinel(x.dtype)
    touched = ~(jnp.isnan(tail) if jnp.issubdtype(x.dtype, jnp.floating) else tail == sentinel).all()
    return jnp.where(touched, jnp.full_like(value, sentinel), value)
