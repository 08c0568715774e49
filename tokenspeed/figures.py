"""What a generation took, as the command line tells it."""

from collections.abc import Callable
from typing import Any

from tokenspeed.completion import Completion
from tokenspeed.models import memory
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import KVDtypes


def figures(
    whole: Completion,
    *,
    config: ModelConfig,
    dtype: str,
    kv: KVDtypes,
    implementation: str,
    batch: int,
    compile_s: float,
    ceiling_gbps: Callable[[], float],
) -> dict[str, Any]:
    """Times and rates of a completion with its samples; None for those that nothing was measured for.

    Args:
        config: of the model. dtype: of its weights. kv: what keys and values are stored in.
        implementation: of the kernels; an interpreter has no rates.
        batch: samples that ran together, at most; the figures of decode are of the first so many.
        compile_s: seconds that compiling took before the call.
        ceiling_gbps: measures the read ceiling; called only where there is a rate to hold against it.
    """
    together = whole.samples[:batch]
    timings = max((sample.timings for sample in together), key=lambda timings: timings.decode_steps)
    rate = None if implementation == "interpret" else timings.tokens_per_s
    found = dict(
        ttft_ms=None if implementation == "interpret" else round(1e3 * timings.ttft_s, 3),
        compile_s=round(compile_s + whole.samples[-1].timings.compile_s, 3),
        decode_tokens_per_s=rate and round(rate, 3),
        decode_steps=timings.decode_steps,
        samples=len(whole.samples),
        samples_at_a_time=len(together),
        prompt_tokens=len(whole.prompt_token_ids),
        output_tokens=len(whole.token_ids),
        bytes_per_step=None,
        achieved_gbps=None,
        read_ceiling_gbps=None,
        percent_of_ceiling=None,
        implementation=implementation,
        dtype=dtype,
    )
    if rate:
        # The cache of a sample is read while it runs, on average half of what it will have been.
        seen = [
            (len(one.prompt_token_ids) + len(one.token_ids) / 2) * min(1, len(one.token_ids) / timings.decode_steps)
            for one in together
        ]
        step_bytes = memory.decode_bytes(config, dtype=dtype, context=sum(seen) / len(seen), batch=len(seen), kv=kv)
        gbps, ceiling = step_bytes * rate / 1e9, ceiling_gbps()
        found |= dict(
            bytes_per_step=round(step_bytes),
            achieved_gbps=round(gbps, 3),
            read_ceiling_gbps=round(ceiling, 1),
            percent_of_ceiling=round(100 * gbps / ceiling, 2),
        )
    return found


def said(f: dict[str, Any]) -> str:
    """The figures in one line."""
    parts = [f"{f['prompt_tokens']} + {f['output_tokens']} tokens"]
    if f["ttft_ms"] is not None:
        parts.append(f"TTFT {f['ttft_ms']:.1f} ms")
    if f["decode_tokens_per_s"]:
        together = f" of {f['samples_at_a_time']}" if f["samples_at_a_time"] > 1 else ""
        parts.append(f"decode {f['decode_tokens_per_s']:.1f} tokens/s a sequence{together}")
        parts.append(
            f"{f['bytes_per_step'] / 1e6:.2f} MB a step = {f['achieved_gbps']:.2f} GB/s, "
            f"{f['percent_of_ceiling']:.1f}% of this machine's measured {f['read_ceiling_gbps']:.0f} GB/s"
        )
    untimed = ", which emulates a GPU and is not timed" if f["implementation"] == "interpret" else ""
    parts.append(f"{f['implementation']}{untimed}, {f['dtype']}; compiled apart from that, in {f['compile_s']:.1f} s")
    return "; ".join(parts)
