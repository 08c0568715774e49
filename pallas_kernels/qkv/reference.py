"""The obvious qkv: the XLA implementation, the oracle (on float32 input) and the source of gradients."""

from pallas_kernels.common.arithmetic import project
from pallas_kernels.common.deferred_norm import finish_norm
from pallas_kernels.rope_and_cache import reference


def qkv(options, *, x, norm, weight, cache, positions, sequence, page_table, rope, q_norm, k_norm, prefetch):
    """As `api.qkv`, with every optional array present or None."""
    del prefetch
    hidden = finish_norm(x, norm, options.eps, options.norm_offset)
    q, _, _, cache = reference.of_pairs(
        project(hidden, weight), cache=cache, positions=positions, sequence=sequence, page_table=page_table, rope=rope,
        q_norm=q_norm, k_norm=k_norm, heads=options.num_heads, rotary_dim=weight.rotary_dim, eps=options.eps,
        norm_offset=options.norm_offset, dtype=weight.dtype,
    )  # fmt: skip
    return q, cache
