"""What happens between launches and from one to the next: repeats, counters, buffers, dependent launches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.attention.tiles import AttentionTiles
from pallas_kernels.common.stream_tiles import Tiles
from tests.pallas_kernels import inputs
from tests.pallas_kernels.compare import assert_same_bits
from tests.pallas_kernels.inputs import Layout

HEADS = dict(heads=8, kv_heads=2, head_dim=64)
CALLS = {
    "qkv": inputs.qkv(inputs.Values(0), rows=2, width=512, layout=Layout(16, 8), **HEADS),
    "attention": inputs.attention(inputs.Values(0), rows=2, layout=Layout(16, 32), counters=True, **HEADS),
    "out": inputs.projection(inputs.Values(0), pk.out, rows=2, outputs=512, inputs=512),
    "gate_up": inputs.gate_up(inputs.Values(0), rows=2, width=512, features=1000),
    "down": inputs.projection(inputs.Values(0), pk.down, rows=5, outputs=512, inputs=1000),
    "down, norm": inputs.projection(inputs.Values(0), pk.down, rows=5, outputs=512, inputs=1000, norm=True),
    "gate_up, deferred norm": inputs.deferred(
        inputs.Values(0), inputs.gate_up(inputs.Values(0), rows=2, width=512, features=1000)
    ),
    "head": inputs.head(inputs.Values(0), pk.head, rows=2, width=512, vocabulary=5000),
}


@pytest.mark.parametrize("name", CALLS)
def test_equal_calls_give_equal_bits(name, implementation):
    call = CALLS[name]
    run = jax.jit(call.bind(implementation))
    first = run(**call.arrays)
    for _ in range(10 if implementation == "triton" else 1):
        assert_same_bits(run(**call.arrays), first)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "tiles", [AttentionTiles(block_s=32, splits=8), AttentionTiles(block_s=16, splits=32, num_stages=1)], ids=str
)
def test_counters_come_back_zero(tiles, rows, implementation):
    call = inputs.attention(inputs.Values(1), rows=rows, layout=Layout(16, 32), **HEADS)
    run = jax.jit(call.bind(implementation, tiles), donate_argnames=("counters",))
    expected = call(implementation, tiles)
    counters = pk.attention_counters(rows, HEADS["kv_heads"])
    for _ in range(5):
        result, counters = run(**(call.arrays | dict(counters=counters)))
        assert not np.any(counters)
        assert_same_bits(result, expected)


@pytest.mark.parametrize("mma", [True, False])
@pytest.mark.parametrize("name", ["out", "gate_up"])
def test_a_row_does_not_depend_on_the_others(name, mma, implementation):
    call = CALLS[name]
    tiles = Tiles(block_n=16, block_k=64, num_stages=3, mma=mma)
    alone = {n: call.arrays[n][:1] for n in ("x", "residual") if n in call.arrays}
    a, b = call(implementation, tiles, **alone), call(implementation, tiles)[:1]
    if mma:
        assert_same_bits(a, b)  # rows are padded to 16, so both run one and the same program
    else:
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("name", ["attention", "out", "gate_up", "down"])
def test_prefetching_changes_no_bit(name, implementation):
    call = CALLS[name]
    later = pk.DenseWeight(values=jnp.full((1000, 512), jnp.nan, jnp.bfloat16))
    plain = call(implementation)
    for count in (2**10, 2**19, 2**25):
        ahead = call.replace(prefetch=later).set(prefetch_bytes=count)
        assert_same_bits(ahead(implementation), plain)


def copies(call, tiles, donated, shape) -> list[str]:
    """The copies of arrays of that shape in the compiled call."""
    step = jax.jit(call.bind("triton", tiles), donate_argnames=donated)
    text = step.lower(**call.arrays).compile().as_text()
    return re.findall(rf"= \(?[a-z0-9]+\[{','.join(map(str, shape))}\]\S* copy(?:-start)?\(", text)


def test_a_donated_cache_is_not_copied(compiled):
    call = CALLS["qkv"]
    shape = call.arrays["cache"].k.shape
    assert copies(call, None, (), shape), "a cache that is kept has to be copied"
    assert not copies(call, None, ("cache",), shape)


def test_donated_counters_are_not_copied(compiled):
    call, tiles = CALLS["attention"], AttentionTiles(block_s=32, splits=8)
    assert not copies(call, tiles, ("counters",), call.arrays["counters"].shape)


def decode(implementation, layers, wait, tiles=None):
    """A decode step of `layers` equal layers, each kernel reading what the one before has just written."""
    qkv, gate_up, down = CALLS["qkv"], CALLS["gate_up"], CALLS["down"]
    out = CALLS["out"]
    where = {n: qkv.arrays[n] for n in ("sequence", "page_table")}
    later = out.arrays["weight"]

    def step(x, cache, counters):
        for _ in range(layers):
            q, cache = wait(qkv(implementation, tiles, x=x, cache=cache))
            heads, counters = wait(
                pk.attention(
                    q, cache, lengths=qkv.arrays["positions"] + 1, counters=counters, prefetch=later,
                    implementation=implementation, **where,
                )
            )  # fmt: skip
            x = wait(out(implementation, tiles, x=heads, residual=x, prefetch=gate_up.arrays["weight"]))
            hidden = wait(gate_up(implementation, tiles, x=x, prefetch=down.arrays["weight"]))
            x = wait(pk.down(hidden, down.arrays["weight"], residual=x, implementation=implementation, tiles=tiles))
        return x, cache, counters

    return step


@pytest.mark.parametrize(
    "tiles",
    [None, Tiles(block_n=16, block_k=64, num_warps=2, num_stages=4, mma=True)],
    ids=["heuristic", "tensor cores, norms of their own"],
)
def test_a_chain_of_launches_equals_them_one_by_one(tiles, implementation):
    """Kernels start before the one ahead has ended: what they read must be there all the same."""
    call = CALLS["qkv"]
    start = call.arrays["x"], call.arrays["cache"], pk.attention_counters(2, 2)
    layers, repeats = (8, 40) if implementation == "triton" else (1, 1)
    expected = decode(implementation, layers, wait=jax.block_until_ready, tiles=tiles)(*start)
    chain = jax.jit(decode(implementation, layers, wait=lambda x: x, tiles=tiles))
    for _ in range(repeats):
        result = chain(*start)
        if implementation == "triton":
            assert_same_bits(result, expected)
        else:  # compiled as a whole for the CPU, sums may be taken in another order
            np.testing.assert_allclose(np.float32(result[0]), np.float32(expected[0]), rtol=2**-5, atol=2**-5)
        assert not np.any(result[2])
