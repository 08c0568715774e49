"""Each op with its fusion undone computes what the fused op's reference does, on the calls that a step makes."""

import jax
import numpy as np
import pytest
from jax import lax

import pallas_kernels as pk
from experiments.ablation import unfused
from experiments.bench import numerics, operands, recorded


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("op", ["qkv", "out", "gate_up", "down", "head"])
def test_the_same_as_the_fused_op(op, batch):
    """One row comes with a deferred norm, several with the norm's weight."""
    call = recorded.call_of(
        op, "ragged", batch=batch, context=40, dtype="float32", implementation=recorded.BY_THE_KERNELS
    )

    @jax.jit
    def both(key):
        one, other = jax.random.split(key)
        drawn = operands.state(call, one) | {operands.streamed_name(call): operands.streamed(call, other)}
        drawn = lax.optimization_barrier(drawn)
        return [
            numerics.judged(call, getattr(namespace, op)(**call.arguments | drawn, implementation="xla"))
            for namespace in (unfused, pk)
        ]

    found, expected = map(jax.tree.leaves, both(jax.random.key(0)))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype
        # Results are of the order of 1, sums of squares of that of the width, 160: float32 sums in another order.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
