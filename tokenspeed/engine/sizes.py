"""How many pages a pool has: by the memory that is there, or by what is asked for."""

import jax

from tokenspeed.arguments import integer
from tokenspeed.engine.runner import Sizes
from tokenspeed.measure.available_memory import NotEnoughMemory, available_bytes
from tokenspeed.models import memory
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.kv_dtypes import KVDtypes

PAGE_SIZE = 64
"""Positions of a page: attention reads blocks of as many keys, and shorter ones cost it more."""
CPU_BYTES = 1 << 30
"""Of a pool on a CPU, whose memory others need, unless more is asked for."""
MAX_BYTES = 1 << 50
TABLES_BYTES = 4 + 4 + 1
"""Of a slot and a token of the vocabulary: its bias, how often it was drawn, and whether it is in the prompt."""


def least_batched_tokens(max_batch: int) -> int:
    """That a step has to compute at least: a page of a prompt, beside all others' tokens."""
    return max_batch - 1 + PAGE_SIZE


def sizes(
    config: ModelConfig,
    *,
    dtype: str,
    kv: KVDtypes,
    max_batch: int,
    max_context: int,
    prefill_tokens: int,
    kv_bytes: int | None = None,
    page_size: int = PAGE_SIZE,
) -> Sizes:
    """What a runner keeps on the default device, where the model's weights are already.

    Args:
        config, dtype: of the model. kv, page_size: of the pool. max_batch: sequences that run at a time.
        max_context: positions of a sequence. prefill_tokens: of a step.
        kv_bytes: of all keys and values; None: what `max_batch` sequences of `max_context` take, as far as memory
            goes, on a CPU up to CPU_BYTES.

    Raises:
        ValueError, TypeError: `kv_bytes` is no integer, or not enough for one sequence of `max_context`.
        NotEnoughMemory: there is not enough for one page.
    """
    page_bytes = page_size * config.kv_bytes_per_token(*kv.itemsizes)
    pages_each = -(-max_context // page_size)
    if kv_bytes is not None:
        check_kv_bytes(config, kv_bytes, kv=kv, max_context=max_context, page_size=page_size)
        pages = kv_bytes // page_bytes
    else:
        plan = memory.plan(config, dtype=dtype, context=min(prefill_tokens, max_context), batch=max_batch)
        free = int((1 - memory.RESERVED) * available_bytes()) - plan.workspace_bytes
        free -= max_batch * config.vocab_size * TABLES_BYTES
        if jax.default_backend() == "cpu":
            free = min(free, CPU_BYTES)
        pages = min(max_batch * pages_each, free // page_bytes)
        if pages < 1:
            raise NotEnoughMemory(f"a KV cache: one page takes {page_bytes} bytes, {max(0, free)} are available")
    return Sizes(pages=pages, page_size=page_size, slots=max_batch, max_context=max_context)


def check_kv_bytes(
    config: ModelConfig, kv_bytes: int, *, kv: KVDtypes, max_context: int, page_size: int = PAGE_SIZE
) -> None:
    """Raises ValueError or TypeError where so many bytes are not enough for one sequence of `max_context`."""
    least = -(-max_context // page_size) * page_size * config.kv_bytes_per_token(*kv.itemsizes)
    integer("kv_bytes", kv_bytes, least, MAX_BYTES, of=f", enough for a sequence of max_context {max_context}")
