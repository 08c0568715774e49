"""One case of an op: how a decode step calls it, how XLA's step calls it, and how calls are chained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels as pk
from experiments.bench import activations, operands, recorded
from experiments.bench.models import DTYPES
from experiments.bench.recorded import BY_THE_KERNELS, OPS, Recorded
from pallas_kernels import Device
from tokenspeed.models.kv_dtypes import AUTO

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An op at one problem size.

    Attributes:
        op: one of `recorded.OPS`. model, rows, context, dtype: as records have them.
        page_size: of the KV cache; 0 where it is contiguous. kv_dtype: what it is stored in, see `kind.KV_DTYPE`.
        call: as the step by the kernels makes it, once `Recorded.cut` says in which form x comes. xla: as XLA's step
            makes it.
    """

    op: str
    model: str
    rows: int
    context: int
    page_size: int
    kv_dtype: str
    dtype: str
    call: Recorded
    xla: Recorded

    @property
    def known(self) -> pk.Op:
        """What pallas_kernels knows of the op: its tiles, its cost."""
        return pk.OPS[self.op]

    @property
    def shape(self) -> Any:
        """The problem that tiles are for."""
        return self.call.shape

    @property
    def cost(self) -> pk.Cost:
        return self.call.cost

    @property
    def record_context(self) -> int | None:
        """The context as records have it: null where it has no part in the case."""
        return self.context if self.op == "attention" else None

    @property
    def record_page_size(self) -> int | None:
        """The page size as records have it: null where it has no part in the case."""
        return self.page_size if self.op == "attention" else None

    @property
    def record_kv_dtype(self) -> str | None:
        """What the cache is stored in as records have it: null where it has no part in the case."""
        return self.kv_dtype if self.op == "attention" else None

    def fixed_point(self, tiles: Any) -> int | None:
        """Bits of the fixed point in which a call with these tiles has its activations; None for floats."""
        return activations.bits_of(self.op, self.call.arguments, tiles)

    def leaves_floats(self, tiles: Any) -> bool:
        """Whether the next kernel wants fixed point, and this one with these tiles makes none."""
        asked = self.call.arguments.get("fixed_point") is not None
        return asked and not pk.makes_fixed_point(self.shape, tiles)

    def counts(self, found: dict[str, Any]) -> bool:
        """Whether a tile's record is of the call that a step makes with that tile, all of whose cost is in its time."""
        tiles = self.tiles(found["tiles"])
        return found["fixed_point"] == self.fixed_point(tiles) and not self.leaves_floats(tiles)

    def incumbents(self, device: Device) -> list[Any]:
        """The tiles that a call runs with today, and the heuristic's."""
        return list(
            dict.fromkeys([
                self.known.chosen_tiles(self.shape, device),
                self.known.default_tiles(self.shape, device),
            ])
        )  # fmt: skip

    def tiles(self, fields: dict[str, Any]) -> Any:
        """Tiles as records have them, as the op takes them."""
        return self.known.space.tiles(**fields)

    def tile_fields(self, tiles: Any) -> dict[str, Any]:
        """The case, and tiles or None, as records have them."""
        if tiles is None:
            return self.fields() | dict(fixed_point=None, tiles=None)
        return self.fields() | dict(fixed_point=self.fixed_point(tiles), tiles=dataclasses.asdict(tiles))

    def fields(self) -> dict[str, Any]:
        """The case as records have it."""
        return dict(
            op=self.op, model=self.model, rows=self.rows, context=self.record_context,
            page_size=self.record_page_size, kv_dtype=self.record_kv_dtype, dtype=self.dtype,
        )  # fmt: skip


def make(
    op: str, model: str, *, rows: int = 1, context: int = 1024, dtype: str = "bf16", page_size: int = 0,
    kv_dtype: str = AUTO,
) -> Case:  # fmt: skip
    """The case of an op in a decode step of a model, a row each of `rows` sequences; dtype as records have it.

    With a page size the caches are pools of pages of so many positions, in no order; with 0 they are contiguous.
    """
    size = dict(batch=rows, context=context, dtype=DTYPES[dtype], page_size=page_size, kv_dtype=kv_dtype)
    return Case(
        op=op, model=model, rows=rows, context=context, page_size=page_size, kv_dtype=kv_dtype, dtype=dtype,
        call=recorded.call_of(op, model, **size, implementation=BY_THE_KERNELS),
        xla=recorded.call_of(op, model, **size, implementation="xla"),
    )  # fmt: skip


def of_record(found: dict[str, Any]) -> Case:
    """The case of a record of a tile."""
    return make(
        found["op"], found["model"], rows=found["rows"], context=found["context"] or 1024, dtype=found["dtype"],
        page_size=found["page_size"] or 0, kv_dtype=found["kv_dtype"] or AUTO,
    )  # fmt: skip


def run(call: Recorded, state: dict[str, Tree], streamed: Tree, tiles: Any, implementation: str) -> Any:
    """The call with these operands: what it returns."""
    arrays = state | {operands.streamed_name(call): streamed}
    return getattr(pk, call.op)(**call.arguments | arrays, implementation=implementation, tiles=tiles)


def chain(
    call: Recorded, state: dict[str, Tree], streamed: list[Tree], tiles: Any, implementation: str, passes: int = 1
) -> Tree:
    """A dependent call for each of what is streamed, `passes` times over; to be compiled."""

    def once(state, streamed):
        results = []
        for item in streamed:
            result, state = operands.feed(call, state, run(call, state, item, tiles, implementation))
            # Waiting for a result alone keeps no call from being deleted; a result that is passed on does.
            state = lax.optimization_barrier((result, state))[1]
            if not operands.feeds_back(call):
                results.append(result)
        return state, results

    results = jax.eval_shape(once, state, streamed)[1]
    carry = state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)
    return lax.fori_loop(0, passes, lambda _, carry: once(carry[0], streamed), carry)


__all__ = ["OPS", "Case", "chain", "make", "of_record", "run"]
