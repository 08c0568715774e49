"""A decode step of a quantised model: its kernels hand each other activations in fixed point."""

import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from tokenspeed.engine import decode
from tokenspeed.models.config import LayerConfig, ModelConfig, Rope
from tokenspeed.models.quantisation import HEAD, PACKED, Quantisation, Scheme
from tokenspeed.weights.random import random_model

CONFIG = ModelConfig(
    family="llama", vocab_size=96, d_model=64, d_ff=128, num_heads=4, num_kv_heads=2, head_dim=16,
    layers=(LayerConfig(),) * 2, max_positions=64, eps=1e-5, rope=Rope(theta=1e4), tied=True,
    quantisation=Quantisation(
        schemes=(
            ((HEAD,), Scheme(layout=PACKED, format="int8")),
            (("Linear",), Scheme(layout=PACKED, format="int4", group=32)),
        ),
        tied_head=True,
    ),
)  # fmt: skip
TILES = pk.Tiles(block_n=16, block_k=32, num_warps=1)


def cache(key: jax.Array, rows: int) -> pk.KVCache:
    k, v = jax.random.normal(key, (2, rows, 2, 32, 16), jnp.bfloat16)
    return pk.KVCache(k=k, v=v)


def step(rows: int, evaluate: Callable = lambda logits: np.asarray(logits(), np.float64), **options):
    """(logits of a step in interpret mode, the ops that were given fixed point, which tracing tells)."""
    took = set()

    def noting(name, x, *args, **kwargs):
        if isinstance(getattr(x, "x", x), pk.FixedPointRows):
            took.add(name)
        return getattr(pk, name)(x, *args, tiles=TILES, **kwargs)

    kernels = types.SimpleNamespace(
        attention=pk.attention,
        fixed_point_bits=functools.partial(pk.fixed_point_bits, tiles=TILES),
        **{name: functools.partial(noting, name) for name in ("qkv", "out", "gate_up", "down", "head_logits")},
    )
    how = dict(implementation="interpret", kernels=kernels)
    model = random_model(CONFIG, "bfloat16", 0)
    keys = jax.random.split(jax.random.key(0), 2)
    caches = [cache(key, rows) for key in keys]
    tokens, positions = jnp.arange(rows, dtype=jnp.int32)[:, None] + 3, jnp.full((rows, 1), 17, jnp.int32)

    def logits() -> jax.Array:
        x, _, _ = decode.decode_step(model, caches, tokens, positions, model.rope_tables(32), **how, **options)
        return decode.logits(model, x, **how)

    return evaluate(logits), took


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_in_fixed_point(rows):
    found, took = step(rows)
    assert took == {"qkv", "out", "gate_up", "down"}, "but for the head, whose weights are int8"
    plain, took = step(rows, deferred_norm=False)
    assert not took
    # Plain, activations are rounded to bfloat16 between kernels.
    assert np.sqrt(np.mean((found - plain) ** 2)) < 0.01 * np.sqrt(np.mean(plain**2))


@pytest.mark.slow
def test_more_rows_stay_floats():
    assert not step(3, jax.eval_shape)[1]
