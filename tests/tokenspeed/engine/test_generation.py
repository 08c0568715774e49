"""The device one call ahead of the host: what comes out is what would if the host looked before every call."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KVCache, attention_counters
from tests.pallas_kernels import lowering
from tokenspeed import LLM, SamplingParams
from tokenspeed.engine import batch, generation
from tokenspeed.engine.build import STEPS
from tokenspeed.engine.generation import Drawn, Generation, Weights
from tokenspeed.engine.kinds import GREEDY as GREEDY_KIND
from tokenspeed.engine.runner import PROGRAMS, Runner
from tokenspeed.models.kv_dtypes import parse
from tokenspeed.models.kv_scales import scales_for
from tokenspeed.sampling.sample import LENGTH, RUNNING
from tokenspeed.sampling.state import make_state
from tokenspeed.text.stream import TextStream
from tokenspeed.weights.tiny import TINY

pytestmark = pytest.mark.usefixtures("programs_run_often")

PROMPT = "Once upon a time"
GREEDY = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)


@functools.cache
def tiny():
    return LLM.from_pretrained(TINY, implementation="xla")


@functools.cache
def free(*prompts, params=GREEDY):
    return tiny().generate(list(prompts), params)


def stop_in(ids, at):
    """A string that is first complete in the token at that place."""
    text, end = tiny().tokenizer.decode(ids), len(tiny().tokenizer.decode(ids[: at + 1]))
    assert len(tiny().tokenizer.decode(ids[:at])) < end
    return next(text[start:end] for start in reversed(range(end)) if text.find(text[start:end]) == start)


def looked_at(ids, params):
    """(text, ids, stop string) of drawn tokens, looked at call by call until a stop string is found."""
    stream = TextStream(tiny().tokenizer, params.stop, include_in_output=params.include_stop_str_in_output)
    text, kept = "", []
    for part in [ids[:1], *(ids[i : i + STEPS] for i in range(1, len(ids), STEPS))]:
        delta = stream.add(part)
        text, kept = text + delta.text, kept + part[: delta.tokens_used]
        if delta.stopped_by is not None:
            return text, kept, delta.stopped_by
    delta = stream.finish()
    return text + delta.text, kept, delta.stopped_by


@pytest.fixture
def events(monkeypatch):
    """The steps of every call that is dispatched and, of every time that the host looks at tokens, 'look'."""
    seen, dispatch, get = [], Runner.steps, jax.device_get

    def steps(runner, rows, count, kind):
        seen.append(count)
        return dispatch(runner, rows, count, kind)

    def looking(tree):
        if isinstance(tree, Drawn):
            seen.append("look")
        return get(tree)

    monkeypatch.setattr(Runner, "steps", steps)
    monkeypatch.setattr(jax, "device_get", looking)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("at", [0, 1, STEPS // 2, STEPS, STEPS + 1, STEPS + STEPS // 2, 2 * STEPS])
def test_a_stop_string_in_the_first_middle_and_last_token_of_a_call(at, include, events):
    (whole,) = free(PROMPT)
    stop = stop_in(whole.token_ids, at)
    params = dataclasses.replace(GREEDY, stop=stop, include_stop_str_in_output=include)
    events.clear()
    (cut,) = tiny().generate(PROMPT, params)
    assert cut.text == whole.text[: whole.text.index(stop)] + (stop if include else "")
    assert (cut.text, cut.token_ids, cut.stop_reason) == looked_at(whole.token_ids, params)
    assert cut.finish_reason == "stop" and len(cut.token_ids) <= at + 1
    assert events.count("look") == 1 + -(-at // STEPS), "it is known when its own call's tokens are looked at"
    pieces = list(tiny().stream(PROMPT, params))
    assert "".join(piece.text for piece in pieces) == cut.text
    assert [i for piece in pieces for i in piece.token_ids] == cut.token_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    "max_tokens, calls",
    [
        (1, []),
        (2, [1]),
        (STEPS, [1] * (STEPS - 1)),
        (STEPS + 1, [STEPS]),
        (STEPS + 2, [STEPS, 1]),
        (2 * STEPS + 1, [STEPS, STEPS]),
        (2 * STEPS + 4, [STEPS, STEPS, 1, 1, 1]),
    ],
)
def test_the_device_is_a_call_ahead_and_stops_at_max_tokens(max_tokens, calls, events):
    ids = free(PROMPT)[0].token_ids
    events.clear()
    (found,) = tiny().generate(PROMPT, dataclasses.replace(GREEDY, max_tokens=max_tokens))
    assert found.token_ids == ids[:max_tokens] and found.finish_reason == "length"
    assert found.timings.decode_steps == max_tokens - 1
    assert found.timings.ttft_s > 0 and (found.timings.decode_s > 0) == (max_tokens > 1)
    assert events == [event for steps in calls for event in (steps, "look")] + ["look"]


@pytest.mark.slow
def test_rows_that_end_in_different_calls(events):
    prompts = [PROMPT, "Lily and Tom", "One day", "The big dog", "Max had a"]
    whole = free(*prompts)
    ids = [completion.token_ids for completion in whole]
    last = next(i for i in ids[2][STEPS + 1 : 2 * STEPS + 1] if i not in ids[2][: STEPS + 1])
    params = [
        dataclasses.replace(GREEDY, stop=stop_in(ids[0], 5)),
        dataclasses.replace(GREEDY, stop=stop_in(ids[1], STEPS + 4)),
        dataclasses.replace(GREEDY, stop_token_ids=(last,)),
        dataclasses.replace(GREEDY, max_tokens=STEPS + 1),
        dataclasses.replace(GREEDY, max_tokens=50),
    ]
    events.clear()
    found = tiny().generate(prompts, params)
    for i in (0, 1):
        assert (found[i].text, found[i].token_ids, found[i].stop_reason) == looked_at(ids[i], params[i])
    assert found[2].token_ids == ids[2][: ids[2].index(last)] and found[2].stop_reason == last
    for i in (3, 4):
        assert found[i].token_ids == ids[i][: params[i].max_tokens] and found[i].finish_reason == "length"
    assert [completion.finish_reason for completion in found[:3]] == ["stop"] * 3
    assert events == [STEPS, "look", STEPS, "look", STEPS, "look", 1, "look", "look"]
    steps = [completion.timings.decode_steps for completion in found]
    assert steps == [STEPS, 2 * STEPS, 2 * STEPS, STEPS, 3 * STEPS + 1], "up to its own last token"
    ends = [completion.timings.ttft_s + completion.timings.decode_s for completion in found]
    assert ends[0] < ends[1] < ends[4]


@pytest.mark.slow
def test_samples_of_one_prompt_with_a_stop_string():
    """Drawn at random, all together: each is what it is without the string, up to it."""
    params = SamplingParams(temperature=0.8, n=4, seed=2, max_tokens=49, ignore_eos=True)
    (whole,) = tiny().generate(PROMPT, params)
    stopped = dataclasses.replace(params, stop=".")
    (found,) = tiny().generate(PROMPT, stopped)
    for one, other in zip(whole.samples, found.samples, strict=True):
        assert (other.text, other.token_ids, other.stop_reason) == looked_at(one.token_ids, stopped)
    assert len({len(sample.token_ids) for sample in found.samples}) > 2


@pytest.mark.slow
@pytest.mark.parametrize("taken", [1, 2])
def test_a_stream_that_is_closed_early_leaves_nothing(taken):
    expected = list(tiny().stream(PROMPT, GREEDY))
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    stream = tiny().stream(PROMPT, GREEDY)
    for piece in expected[:taken]:
        assert next(stream) == piece
    stream.close()
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) <= before
    again = list(tiny().stream(PROMPT, GREEDY))
    assert [piece.token_ids for piece in again] == [piece.token_ids for piece in expected]
    assert again[-1].completion.text == expected[-1].completion.text


CAPACITY = 128
HOW = dict(logprobs=None, implementation="xla")


@functools.partial(jax.jit, donate_argnums=1, static_argnames=("steps", "logprobs", "implementation"))
def advance(weights, state, rope, *, steps, **how):
    return generation.decode_steps(weights, state, rope, steps=steps, **how)


def started(params=GREEDY):
    """(weights, rotation tables, the state after the first token) of the prompt, in a contiguous cache."""
    model, prompt = tiny().model, tiny().encode(PROMPT)
    weights, c, rope = Weights.of(model), model.config, model.rope_tables(CAPACITY)
    positions = jnp.arange(len(prompt), dtype=jnp.int32)[None]
    caches = [KVCache.zeros(1, c.num_kv_heads, CAPACITY, c.head_dim, model.dtype) for _ in c.layers]
    prefill = jax.jit(type(model).prefill, static_argnames="capacity")
    x, caches = prefill(model, caches, jnp.array([prompt], jnp.int32), positions, rope, capacity=CAPACITY)
    state = Generation(
        caches=caches,
        counters=attention_counters(1, c.num_kv_heads),
        hidden=x[:, -1],
        token=jnp.zeros((1,), jnp.int32),
        position=positions[:, -1],
        step=jnp.zeros((1,), jnp.int32),
        max_tokens=jnp.array([params.max_tokens], jnp.int32),
        sampling=make_state([params], [prompt], c.vocab_size, (), default_seeds=[0]),
    )
    state, first = jax.jit(functools.partial(generation.draw_first, **HOW))(weights, state)
    assert first.tokens.shape == (1, 1) and first.reason.tolist() == [RUNNING]
    return weights, rope, state


@pytest.mark.slow
def test_the_state_after_steps_beyond_the_end():
    weights, rope, state = started(dataclasses.replace(GREEDY, max_tokens=4))
    state, drawn = advance(weights, state, rope, steps=8, **HOW)
    assert drawn.tokens[:, 0].tolist() == free(PROMPT)[0].token_ids[1:4] + [generation.ENDED] * 5
    assert drawn.reason.tolist() == [LENGTH]
    assert state.step.tolist() == [4] and state.position.tolist() == [-1]
    state, drawn = advance(weights, state, rope, steps=2, **HOW)
    assert drawn.tokens.tolist() == [[generation.ENDED]] * 2 and drawn.reason.tolist() == [RUNNING]
    assert state.step.tolist() == [4] and state.position.tolist() == [-1]


@pytest.mark.slow
@pytest.mark.parametrize("params", [GREEDY, dataclasses.replace(GREEDY, temperature=1.0, seed=0)])
def test_logits_that_are_not_finite_end_a_row(params):
    weights, rope, state = started(params)
    broken = Weights([x * jnp.nan for x in weights.arrays], weights.tree)
    state, drawn = advance(broken, state, rope, steps=3, **HOW)
    assert drawn.tokens[:, 0].tolist() == [generation.BROKEN] + [generation.ENDED] * 2
    assert state.position.tolist() == [-1]


def test_weights_are_the_model():
    model = tiny().model
    weights = Weights.of(model)
    for one, other in zip(jax.tree.leaves(model), jax.tree.leaves(weights.model), strict=True):
        assert one is other
    assert len(jax.tree.leaves(weights)) == len(weights.arrays)


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["auto", "int8/fp8"])
def test_a_step_on_a_gpu_has_no_launch_for_a_bound_or_a_reduction(kv_dtype):
    """Of greedy decode: what XLA would make a kernel, or more than one, of its own at every step."""
    model, plan = tiny().model, GREEDY_KIND.plan
    kv = parse("kv_dtype", kv_dtype, model.dtype)
    make = functools.partial(
        batch.empty, model.config, kv, scales_for(model, kv), pages=4, page_size=64, slots=2, pages_each=2, plan=plan
    )
    rows, rope = jax.ShapeDtypeStruct((1, len(batch.DECODE_COLUMNS)), np.int32), model.rope_tables(CAPACITY)
    with lowering.for_gpu("h200"):
        traced = PROGRAMS["steps"].trace(
            Weights.of(model), jax.eval_shape(make), rows, rope,
            count=4, capacity=CAPACITY, plan=plan, logprobs=None, implementation="triton",
        )  # fmt: skip
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    body = text[text.index(" do {") : text.index("stablehlo.return", text.index(" do {"))]
    assert "call @" in body
    for operation in ("scatter", "dynamic_update_slice", "reduce"):
        assert f"stablehlo.{operation}" not in body
