"""Namespaces that stand in for pallas_kernels where a decode step takes its kernels."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import pallas_kernels as pk
from experiments.bench.activations import VECTORS
from experiments.bench.recorded import OPS
from pallas_kernels import Device

STEP_OPS = (*OPS, "head_logits")


def replaced(**others: Callable) -> types.SimpleNamespace:
    """The fused ops, and who of them wants fixed point, but for those that are given."""
    return types.SimpleNamespace(**{name: getattr(pk, name) for name in (*STEP_OPS, "fixed_point_bits")} | others)


def with_tiles(tiles: Mapping[str, Any], prefetch_bytes: int | None = None) -> types.SimpleNamespace:
    """The fused ops with these tiles, by op; those not named choose by themselves.

    Args:
        prefetch_bytes: of the next weight that each kernel asks for, 0 for none; None for what they ask for themselves.
    """

    def bound(name: str) -> Callable:
        early = dict(prefetch_bytes=prefetch_bytes) if prefetch_bytes else {}
        function = functools.partial(getattr(pk, name), tiles=tiles.get(name))
        if name in ("head", "head_logits") or prefetch_bytes is None:
            return function
        if prefetch_bytes:
            return functools.partial(function, **early)
        return lambda *args, prefetch=None, **how: function(*args, **how)

    def bits(op: str, weight: pk.Weight, rows: int) -> int | None:
        return pk.fixed_point_bits(op, weight, rows, tiles.get(op))

    return replaced(**{name: bound(name) for name in STEP_OPS}, fixed_point_bits=bits)


def with_default_tiles(device: Device) -> types.SimpleNamespace:
    """The fused ops with the heuristics' tiles for that device, whatever was tuned."""

    def bound(name: str) -> Callable:
        op, function = pk.OPS[name], getattr(pk, name)

        def call(*args, **how):
            shape = op.shape(*args, **how)
            return function(*args, **how, tiles=op.default_tiles(shape, device))

        return call

    def bits(op: str, weight: pk.Weight, rows: int) -> int | None:
        # Of integers the heuristic's are on vectors, for as few rows as come in fixed point.
        return pk.fixed_point_bits(op, weight, rows, VECTORS)

    return replaced(**{name: bound(name) for name in STEP_OPS}, fixed_point_bits=bits)
