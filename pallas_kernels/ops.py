"""What is known of each op besides how to run it: the problem that a call is, its tiles, and what it costs at least."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from pallas_kernels.attention import api as attention
from pallas_kernels.attention import cost as attention_cost
from pallas_kernels.attention.tiles import ATTENTION, AttentionShape, AttentionTiles
from pallas_kernels.common import checks, choose_tiles, fixed_point, weights
from pallas_kernels.common.calls import stream_shape
from pallas_kernels.common.cost import Cost
from pallas_kernels.common.devices import Device
from pallas_kernels.common.stream_space import FIXED_POINT_ROWS, RUNS_OF_SPLIT_STREAM, RUNS_OF_STREAM, STREAM
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from pallas_kernels.common.tile_space import TileSpace, Verdict
from pallas_kernels.common.weights import Weight
from pallas_kernels.gate_up import api as gate_up
from pallas_kernels.gate_up import cost as gate_up_cost
from pallas_kernels.head import api as head
from pallas_kernels.head import cost as head_cost
from pallas_kernels.projection import api as projection
from pallas_kernels.projection import cost as projection_cost
from pallas_kernels.qkv import api as qkv
from pallas_kernels.qkv import cost as qkv_cost
from pallas_kernels.qkv.tiles import QKV

Shape = StreamShape | AttentionShape
AnyTiles = Tiles | AttentionTiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
    """A fused op.

    Attributes:
        name: of the public function.
        tuned: the name of its tuned files.
        shape: (the function's arguments) -> the problem of one launch of that call, which tiles are for. Here and in
            `cost` an array may be a `jax.ShapeDtypeStruct`.
        cost: (the function's arguments) -> the least that the call must move and compute.
        space: its tiles.
    """

    name: str
    tuned: str
    shape: Callable[..., Shape]
    cost: Callable[..., Cost]
    space: TileSpace

    def search_space(self, shape: Shape) -> list[AnyTiles]:
        """The tiles worth trying for `shape` on any device, before `feasible`."""
        checks.instance("shape", shape, self.space.shape)
        return self.space.search(shape)

    def feasible(self, tiles: AnyTiles, shape: Shape, device: Device) -> Verdict:
        """Whether the tiles compile on that device without spilling, and why not; tested against real compilations."""
        checks.instance("tiles", tiles, self.space.tiles)
        self._check(shape, device)
        return self.space.feasible(tiles, shape, device)

    def default_tiles(self, shape: Shape, device: Device) -> AnyTiles:
        """The heuristic's tiles."""
        self._check(shape, device)
        return self.space.default(shape, device)

    def chosen_tiles(self, shape: Shape, device: Device) -> AnyTiles:
        """The tiles that a call without `tiles=` runs with: tuned ones where there are any, else the heuristic's."""
        self._check(shape, device)
        return choose_tiles.choose(self.tuned, shape, device, self.space)

    def _check(self, shape: Shape, device: Device) -> None:
        checks.instance("shape", shape, self.space.shape)
        checks.instance("device", device, Device)


OPS = {
    op.name: op
    for op in (
        Op(name="qkv", tuned="qkv", shape=qkv.shape_of, cost=qkv_cost.cost, space=QKV),
        Op(name="attention", tuned="attention", shape=attention.shape_of, cost=attention_cost.cost, space=ATTENTION),
        Op(name="out", tuned="out", shape=projection.shape_of, cost=projection_cost.cost, space=RUNS_OF_SPLIT_STREAM),
        Op(name="gate_up", tuned="gate_up", shape=gate_up.shape_of, cost=gate_up_cost.cost, space=RUNS_OF_STREAM),
        Op(name="down", tuned="down", shape=projection.shape_of, cost=projection_cost.cost, space=RUNS_OF_SPLIT_STREAM),
        Op(name="head", tuned="head", shape=head.shape_of, cost=head_cost.head, space=STREAM),
        Op(name="head_logits", tuned="head", shape=head.shape_of, cost=head_cost.head_logits, space=STREAM),
    )
}


PACKED_BY = dict(
    qkv="pack_qkv", out="pack_linear", gate_up="pack_gate_up", down="pack_linear", head="pack_linear",
    head_logits="pack_linear",
)  # fmt: skip
"""The ops that stream a weight, and what packs it."""


def fixed_point_bits(
    op: str, weight: Weight, rows: int, tiles: Tiles | None = None, *, qk_norm: bool = False
) -> int | None:
    """Bits of the fixed point in which an op wants its activations, on the current device: `fixed_point=` of the kernel
    that makes them, and None for floats.

    Args:
        op: one that streams a weight. weight: that weight. rows: activation rows.
        tiles: that the op is to run with; None for those that it chooses.
        qk_norm: of qkv, whether it norms heads, which it does on tensor cores and so with floats.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """
    packed_by = PACKED_BY[checks.one_of("op", op, tuple(PACKED_BY))]
    weights.check(weight, ("O", "I") if packed_by == "pack_linear" else ("O", 2, "I"), packed_by)
    rows = checks.whole("rows", rows, 1)
    if tiles is not None:
        checks.instance("tiles", tiles, Tiles)
    if not isinstance(qk_norm, bool):
        raise TypeError(f"qk_norm: expected True or False, got {checks.described(qk_norm)}")
    if rows > FIXED_POINT_ROWS or qk_norm:
        return None
    x: Any = jax.ShapeDtypeStruct((rows, weight.shape[-1]), weight.dtype)
    shape = stream_shape(x, weight)
    if not shape.wants_fixed_point:
        return None
    return fixed_point.bits_for(shape, tiles or choose_tiles.resolve(OPS[op].tuned, None, shape, OPS[op].space))


def makes_fixed_point(shape: Shape, tiles: AnyTiles) -> bool:
    """Whether attention, `out`, `gate_up` or `down` of this shape, with these tiles, makes the fixed point that it is
    asked for (`fixed_point=`); else it leaves floats.

    Not of `qkv` and `head`, which make none and whose shapes look like those of the others.

    Raises:
        TypeError: the shape is of no op, or the tiles are not those of its op; the message names it.
    """
    space = ATTENTION if isinstance(shape, AttentionShape) else STREAM
    checks.instance("shape", shape, space.shape, " or an AttentionShape")
    checks.instance("tiles", tiles, space.tiles)
    if isinstance(shape, AttentionShape):
        return shape.in_runs
    assert isinstance(tiles, Tiles)
    return fixed_point.made(16, shape.outputs, tiles) is not None
