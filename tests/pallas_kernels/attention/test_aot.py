"""XLA's attention compiles for a GPU that need not be here, where a decode step works out the lengths."""

import sys

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from tests.pallas_kernels import aot

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(bool(aot.missing()), reason=aot.missing()),
]


def step(q, cache, tokens, positions):
    """Of one sequence, which has ended where its last token is negative."""
    lengths = jnp.where(tokens[:, 0] >= 0, positions, -1) + 1
    return pk.attention(q, cache, lengths=lengths, implementation="xla")


def main() -> None:
    aot.start()
    sharding = jax.sharding.SingleDeviceSharding(aot.Compiler(sys.argv[1]).device)
    described = lambda *shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    kv = described(1, 8, 1024, 64, dtype=jnp.bfloat16)
    jax.jit(step).lower(
        described(1, 32, 64, dtype=jnp.bfloat16), pk.KVCache(k=kv, v=kv), described(1, 1, dtype=jnp.int32),
        described(1, dtype=jnp.int32),
    ).compile()  # fmt: skip


def test_it_compiles_with_the_lengths_fused_into_it():
    """XLA's `hoist-fused-bitcasts` gives an operand of a fused product another shape for one of its users alone."""
    aot.run_module(__name__, "h200")


if __name__ == "__main__":
    main()
