"""What a load came to."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.serve_bench.client import Request
from experiments.throughput.client import percentile

PERCENTS = (50, 90, 95, 99)


def figures(requests: Sequence[Request], begun: float, slo_ttft_ms: float, slo_itl_ms: float) -> dict[str, Any]:
    """Of the requests that were due from `begun` on; those of a mix's long prompts have a figure of their own.

    Args:
        slo_ttft_ms, slo_itl_ms: a request is good whose first token came within the one, and whose tokens came within
            the other of each other on average.
    """
    counted = [one for one in requests if one.due >= begun]
    main = [one for one in counted if one.prompt.kind == "chat"] or counted
    good = [one for one in main if not one.error]
    long = [one.ttft_ms for one in counted if one.prompt.kind == "long" and not one.error and main is not counted]
    seconds = max((one.ended for one in counted), default=begun) - begun
    meeting = sum(_meets(one, slo_ttft_ms, slo_itl_ms) for one in good)
    found: dict[str, Any] = dict(
        requests=len(main),
        errors=sum(bool(one.error) and one.status != 429 for one in main),
        rejected=sum(one.status == 429 for one in main),
        seconds=round(seconds, 4),
        requests_per_s=round(len(good) / seconds, 4) if seconds else None,
        output_tokens_per_s=round(sum(len(one.arrivals) for one in counted) / seconds, 2) if seconds else None,
        prompt_tokens_mean=_mean([one.prompt_tokens for one in good if one.prompt_tokens is not None]),
        output_tokens_mean=_mean([len(one.arrivals) for one in good]),
        request_tokens_per_s_p50=percentile([one.tokens_per_s for one in good if one.tokens_per_s is not None], 50),
        long_ttft_ms_p50=percentile(long, 50),
        goodput_per_s=round(meeting / seconds, 4) if seconds else None,
        late_ms_p99=percentile([1e3 * (one.sent - one.due) for one in main], 99),
    )
    spans = dict(
        ttft=[one.ttft_ms for one in good], itl=[gap for one in good for gap in one.gaps_ms],
        whole=[one.whole_ms for one in good],
    )  # fmt: skip
    for name, values in spans.items():
        found |= {f"{name}_ms_p{percent}": percentile(values, percent) for percent in PERCENTS}
    return found


def _meets(one: Request, ttft_ms: float, itl_ms: float) -> bool:
    gaps = one.gaps_ms
    return one.ttft_ms <= ttft_ms and (not gaps or sum(gaps) / len(gaps) <= itl_ms)


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 2) if len(values) else None
