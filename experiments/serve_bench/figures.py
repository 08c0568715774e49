"""What a load came to."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.bench.outcome import Outcome
from experiments.serve_bench.client import COUNTED_BY, REJECTED, Request
from experiments.throughput.client import percentile

PERCENTS = (50, 90, 95, 99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is good, and what still counts.

    Attributes:
        ttft_ms, tpot_ms: a request is good whose first token came within the one, and the mean of whose later ones is
            within the other. late_ms: of the client, 99th percentile: where it is later a case does not count.
    """

    ttft_ms: float
    tpot_ms: float
    late_ms: float


def figures(
    requests: Sequence[Request], begun: float, least_s: float, bounds: Bounds, lags: Sequence[tuple[float, float]],
    in_tokens: bool,
) -> dict[str, Any]:  # fmt: skip
    """Of the requests that were due from `begun` on; those of a mix's long prompts have a figure of their own.

    Args:
        least_s: in which requests could be due. lags: (when, ms) of the client's event loop.
        in_tokens: whether prompts were made in tokens, which the server's count is held against.
    """
    counted = [one for one in requests if one.due >= begun]
    main = [one for one in counted if one.prompt.kind == "chat"] or counted
    good = [one for one in main if not one.error]
    long = [one.ttft_ms for one in counted if one.prompt.kind == "long" and not one.error and main is not counted]
    seconds = max([least_s, *(one.ended - begun for one in counted)])
    tokens = sum(one.tokens for one in good)
    tpot = [one.tpot_ms for one in good if one.tpot_ms is not None]
    found: dict[str, Any] = dict(
        requests=len(main),
        errors=sum(bool(one.error) and one.error != REJECTED for one in main),
        rejected=sum(one.error == REJECTED for one in main),
        errors_by_kind=dict(sorted(collections.Counter(one.error for one in main if one.error).items())),
        seconds=round(seconds, 4),
        requests_per_s=_ratio(len(good), seconds),
        output_tokens_per_s=_ratio(sum(one.tokens for one in counted), seconds),
        prompt_tokens_mean=_mean([one.prompt_tokens for one in good if one.prompt_tokens is not None]),
        output_tokens_mean=_mean([one.tokens for one in good]),
        counted_by=max((one.counted_by for one in good), key=COUNTED_BY.index, default=None),
        tokens_per_event_mean=_ratio(tokens, sum(len(one.arrivals) for one in good)),
        tokens_at_once_mean=_ratio(tokens, sum(len(one.at_once) for one in good)),
        request_tokens_per_s_p50=percentile([1e3 / each for each in tpot], 50),
        long_ttft_ms_p50=percentile(long, 50),
        goodput_per_s=_ratio(sum(_meets(one, bounds) for one in good), seconds),
        late_ms_p99=percentile([1e3 * (one.sent - one.due) for one in main], 99),
        loop_lag_ms_p99=percentile([lag for when, lag in lags if when >= begun], 99),
    )
    spans = dict(
        ttft=[one.ttft_ms for one in good], tpot=tpot, itl=[gap for one in good for gap in one.gaps_ms],
        whole=[one.whole_ms for one in good],
    )  # fmt: skip
    for name, values in spans.items():
        found |= {f"{name}_ms_p{percent}": percentile(values, percent) for percent in PERCENTS}
    extra = {
        one.prompt_tokens - one.prompt.input for one in requests if not one.error and one.prompt_tokens is not None
    }
    found["template_tokens"] = extra.pop() if in_tokens and len(extra) == 1 and min(extra) >= 0 else None
    return found | dict(status=_outcome(found, bounds, extra if in_tokens else set()).status)


def _outcome(found: dict[str, Any], bounds: Bounds, extra: set[int]) -> Outcome:
    outcome = Outcome()
    if found["errors"] + found["rejected"] == found["requests"]:
        outcome.void("no request was answered")
    if extra:
        more = f"{min(extra)} to {max(extra)}" if len(extra) > 1 else str(min(extra))
        outcome.void(f"the tokenizer is not the server's, which counts {more} more tokens than a prompt has")
    for who, field in (("the client", "late_ms_p99"), ("the client's event loop", "loop_lag_ms_p99")):
        if (late := found[field]) is not None and late > bounds.late_ms:
            outcome.void(f"{who} was {late:.1f} ms late (p99), of the {bounds.late_ms:g} that it may")
    return outcome


def _meets(one: Request, bounds: Bounds) -> bool:
    return one.ttft_ms <= bounds.ttft_ms and (one.tpot_ms or 0.0) <= bounds.tpot_ms


def _ratio(count: float, of: float) -> float | None:
    return round(count / of, 4) if of else None


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 2) if len(values) else None
