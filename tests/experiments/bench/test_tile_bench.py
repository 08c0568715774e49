"""Plans of chains, and one call compiled, checked and timed."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import cases, operands, tile_bench
from experiments.bench.recorded import OPS
from experiments.bench.tile_bench import Bench, Plan


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.2-1b"])
@pytest.mark.parametrize("op", OPS)
def test_plans_are_cold_and_long(op, model):
    case = cases.make(op, model)
    plan = tile_bench.plan(case.call)
    one = tile_bench.streamed_bytes(case.call)
    assert plan.copies <= plan.calls
    assert plan.copies * one >= 4 * 60e6, "more than four times the L2 of an H200"
    assert plan.copies * one <= 24 << 30
    us = case.cost.floor_us(4000) + tile_bench.LAUNCH_US
    assert plan.calls * plan.passes * us >= tile_bench.CHAIN_US
    assert tile_bench.plan(case.call, 2, 1) == Plan(2, 2, 1)


def test_streamed_bytes_are_those_of_the_weight_or_the_cache():
    down, attention = cases.make("down", "ragged"), cases.make("attention", "ragged", context=80)
    assert tile_bench.streamed_bytes(down.call) == 160 * 344 * 2  # d_model x d_ff in bf16
    assert tile_bench.streamed_bytes(attention.call) == 2 * 2 * 80 * 40 * 2  # k and v, heads x positions x width


def test_a_call_that_does_not_compile_has_its_reason():
    case = cases.make("out", "ragged")
    program = tile_bench.compile_call(case.call, "no tiles", "interpret")
    assert program.once is None and program.chain is None
    assert program.reason.startswith("compile failed: TypeError: tiles: expected")


@pytest.mark.slow
@pytest.mark.parametrize("op, page_size", [("qkv", 0), ("attention", 0), ("attention", 32), ("out", 0), ("head", 0)])
def test_a_call_alone_and_in_a_chain(op, page_size, make_machine):
    """In a chain every call is made, over the copies in turn: two passes over two copies end where four calls do."""
    case = cases.make(op, "ragged", context=80, dtype="f32", page_size=page_size)
    how, starts = Plan(calls=2, copies=2, passes=2), []
    bench = Bench(case.call, how, make_machine(times=(7.0,), before=starts.append), seed=3)
    program = tile_bench.compile_call(case.call, None, "xla", how)
    assert program.reason == "" and program.compile_s > 0
    assert bench.check(program, 0).reason == ""
    timing = bench.time(program, samples=5, sample_seconds=0.0)
    assert (timing.median_us, timing.samples, starts) == (7.0, 5, [0])

    state = bench.state(0)
    end, results = program.chain(state, bench.copies)
    for i in range(4):
        result = cases.run(case.call, state, bench.copies[i % 2], None, "xla")
        result, state = operands.feed(case.call, state, result)
    for found, expected in zip(jax.tree.leaves(end), jax.tree.leaves(state), strict=True):
        # Sums of float32 in whatever order XLA has them in each program, four calls deep.
        assert jnp.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert bool(results) != operands.feeds_back(case.call), "what does not feed back is returned, or it would not run"


@pytest.mark.slow
def test_draws_are_others_and_the_same_again(make_machine):
    call = cases.make("out", "ragged").call
    one, again = (Bench(call, Plan(1, 2, 1), make_machine(), seed=3) for _ in range(2))

    def same(a, b):
        return all(jnp.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    assert same(one.state(0), again.state(0)) and same(one.copies, again.copies)
    assert not same(one.state(0), one.state(1)) and not same(one.copies[0], one.copies[1])


@pytest.mark.slow
def test_operands_of_a_paged_call(make_machine):
    """A shuffled table, the same for the same draw, and a context that ends inside the last page."""
    call = cases.make("attention", "ragged", rows=3, context=80, page_size=32).call
    bench = Bench(call, Plan(1, 1, 1), make_machine(), seed=3)
    one, again, other = (bench.state(draw) for draw in (0, 0, 1))
    flat = one["page_table"].reshape(-1)
    assert sorted(flat.tolist()) == list(range(9)) and (flat != jnp.arange(9)).all()
    assert (one["page_table"] == again["page_table"]).all() and (one["page_table"] != other["page_table"]).any()
    assert one["lengths"].tolist() == [80] * 3
    qkv = cases.make("qkv", "ragged", rows=3, context=80, page_size=32).call
    assert operands.state(qkv, jax.random.key(0))["positions"].tolist() == [79] * 3
