"""What the engine keeps of a request's sample beside its sequence, and how it draws."""

import dataclasses

import numpy as np

from tokenspeed.engine.kinds import FULL, KINDS, Kind
from tokenspeed.engine.row import Row
from tokenspeed.engine.sequence import Sequence
from tokenspeed.models.config import ModelConfig
from tokenspeed.sampling.state import SamplingRows, make_rows


@dataclasses.dataclass(eq=False)
class RequestState:
    """A sample's sequence with its row, and what the device has been told of it.

    Attributes:
        kind: of drawing, that the row needs. words: of `SamplingRows`. tables: whether the row needs any.
        slot: of the batch, None while it waits. pages_told: how many of its pages the device knows.
    """

    sequence: Sequence
    row: Row
    kind: Kind
    words: np.ndarray
    tables: bool
    slot: int | None = None
    pages_told: int = 0


def widest(states: list[RequestState]) -> Kind:
    """The kind that does for all."""
    return max((state.kind for state in states), key=KINDS.index)


def sampling_rows(config: ModelConfig, row: Row, *, tables: bool, outputs: list[int] | None = None) -> SamplingRows:
    """How a row draws.

    Args:
        tables: whether to make tables that it does not need. outputs: the tokens that it has drawn.
    """
    plan = FULL.plan
    if not tables and not row.params.needs_bias and not row.params.needs_penalties:
        plan = dataclasses.replace(plan, bias=False, penalties=False)
    return make_rows(
        [row.params], [row.prompt], config.vocab_size, config.eos_ids, outputs=[outputs or []],
        samples=[row.sample], default_seeds=[row.seed], plan=plan,
    )  # fmt: skip
