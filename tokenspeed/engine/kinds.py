"""Kinds: the few ways of drawing that programs are compiled for, whatever requests ask for."""

import dataclasses

from tokenspeed.sampling.params import MAX_LOGPROBS
from tokenspeed.sampling.state import SamplingPlan

MAX_ENDS = 64
"""Ids that may end a sequence, the model's own among them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What a program can do for its rows.

    Attributes:
        plan: of sampling. logprobs: how many it reports, see `sample`.
    """

    plan: SamplingPlan
    logprobs: int | None = None

    def covers(self, plan: SamplingPlan, logprobs: int | None) -> bool:
        """Whether a row with this plan of its own can be drawn so, and this many log-probabilities reported."""
        return self.plan.covers(plan) and (
            logprobs is None or logprobs <= (-1 if self.logprobs is None else self.logprobs)
        )


GREEDY = Kind(plan=SamplingPlan(ends=MAX_ENDS))
DRAWN = Kind(plan=SamplingPlan(random=True, min_p=True, top_k=True, top_p=True, ends=MAX_ENDS))
FULL = Kind(plan=dataclasses.replace(DRAWN.plan, bias=True, penalties=True, min_tokens=True), logprobs=MAX_LOGPROBS)
KINDS = (GREEDY, DRAWN, FULL)
"""Each covers those before it."""


def kind_of(plan: SamplingPlan, logprobs: int | None) -> Kind:
    """The first that covers a row.

    Raises:
        ValueError: none does, since too many ids end it.
    """
    if plan.ends > MAX_ENDS:
        raise ValueError(f"stop_token_ids: expected at most {MAX_ENDS} with the model's own, got more")
    return next(kind for kind in KINDS if kind.covers(plan, logprobs))
