"""The form in which a call's activations come, by its tiles: in fixed point where they multiply integers on vectors.

A decode step asks each op which it wants (`pk.fixed_point_bits`), and the kernel before leaves that. Here the kernel
before is always cut so that it can.
"""

import dataclasses
import functools
from typing import Any

import jax

import pallas_kernels as pk

VECTORS = pk.Tiles(block_n=16, block_k=256)
"""Any tiles on vectors: with them an op of integer weights wants fixed point, for few rows."""


def bits_of(op: str, arguments: dict[str, Any], tiles: pk.Tiles) -> int | None:
    """Of the fixed point in which a call with these tiles takes x; None for floats."""
    x = arguments.get("x")
    if x is None:
        return None
    if len(x.shape) == 3 if op == "out" else op != "down" and not isinstance(x, pk.DeferredNorm):
        return None  # attention has heads of no whole runs; all of a norm comes first
    return pk.fixed_point_bits(op, arguments["weight"], _rows(x).shape[0], tiles)


def as_taken(op: str, arguments: dict[str, Any], tiles: Any) -> dict[str, Any]:
    """The arguments with x as a call with these tiles takes it; arrays as `jax.ShapeDtypeStruct`."""
    if "x" not in arguments:
        return dict(arguments)
    x, bits = arguments["x"], bits_of(op, arguments, tiles)
    rows = jax.ShapeDtypeStruct(_rows(x).shape, _rows(x).dtype)
    if bits is not None:
        rows = jax.eval_shape(functools.partial(pk.to_fixed_point, bits=bits), rows)
    return arguments | dict(x=dataclasses.replace(x, x=rows) if isinstance(x, pk.DeferredNorm) else rows)


def _rows(x: Any) -> Any:
    return x.x if isinstance(x, pk.DeferredNorm) else x
