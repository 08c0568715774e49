"""Generation from end to end, on a real checkpoint and on random ones."""

import dataclasses
import functools
import re
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tokenspeed.shared import folder
from tokenspeed import LLM, SamplingParams
from tokenspeed import llm as llm_module
from tokenspeed.engine.build import STEPS, offline
from tokenspeed.engine.row import Row
from tokenspeed.engine.runner import Runner
from tokenspeed.models.config import LayerConfig, ModelConfig, Rope

pytestmark = pytest.mark.usefixtures("programs_run_often")

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
CONFIG = ModelConfig(
    family="llama", vocab_size=96, d_model=32, d_ff=64, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=128, eps=1e-5, rope=Rope(theta=10000.0), layers=(LayerConfig(), LayerConfig(window=16)),
    dtype="float32", eos_ids=(95,),
)  # fmt: skip


@functools.cache
def stories():
    return LLM.from_pretrained(folder("checkpoints", "stories260K"), implementation="xla")


@functools.cache
def random(dtype="float32"):
    """Weights large enough that its tokens vary; in bfloat16 the same ones, rounded."""
    if dtype != "float32":
        return LLM(jax.tree.map(lambda x: x.astype(dtype), random().model), implementation="xla")
    llm = LLM.random(CONFIG, implementation="xla")
    llm.model = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, llm.model)
    return llm


@pytest.mark.slow
def test_the_documented_text_to_the_character():
    text = (folder("checkpoints", "stories260K") / "greedy.txt").read_text()
    (whole,) = stories().generate([[1]], SamplingParams(temperature=0.0, max_tokens=None))
    assert whole.text.startswith(text.rstrip("\n")) and whole.finish_reason == "stop"
    opening = "Once upon a time"
    assert text.startswith(opening)
    (on,) = stories().generate(opening, SamplingParams(temperature=0.0, max_tokens=150))
    assert text.startswith(opening + on.text) or (opening + on.text).startswith(text.rstrip("\n"))


@pytest.mark.slow
def test_goldens_greedy_tokens():
    path = folder("goldens", "llama-gqa")
    llm, expected = LLM.from_pretrained(path, implementation="xla"), load_file(path / "golden.safetensors")
    assert llm.tokenizer is None
    prompts = expected["input_ids"].tolist()
    found = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    for completion, greedy in zip(found, expected["greedy"], strict=True):
        assert completion.token_ids == greedy[48:].tolist()
        assert completion.text is None and completion.finish_reason == "length"
    np.testing.assert_allclose(llm.logits(prompts), expected["logits"], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_affect_each_other(dtype):
    """A prompt alone, and in a full batch of ragged others: in bfloat16 on the same program, of as many rows."""
    llm, draw = random(dtype), np.random.default_rng(0)
    prompts = [draw.integers(0, 95, size).tolist() for size in (5, 1, 51, 17, 33, 2, 9, 64, 3, 21, 7, 11, 50, 4, 6, 30)]
    params = dataclasses.replace(GREEDY, max_tokens=17)
    together = [c.token_ids for c in llm.generate(prompts, params)]
    assert len({tuple(ids) for ids in together}) > 8, "the prompts must not all give the same"
    others = [draw.integers(0, 95, 64).tolist() for _ in range(15)]
    for i in (2, 7):
        alone = llm.generate([prompts[i]] if dtype == "float32" else [prompts[i], *others], params)[0]
        assert alone.token_ids == together[i]


@pytest.mark.slow
def test_more_prompts_than_a_batch_each_with_its_own_params():
    """Rows end with the first token, and early in, late in and with the next call; a length more is a program more."""
    llm = random()
    prompts = [[i, i + 1, i + 2] for i in range(20)]
    params = [dataclasses.replace(GREEDY, max_tokens=(1, 4, 10, 17)[i % 4]) for i in range(20)]
    found = llm.generate(prompts, params)
    for prompt, own, completion in zip(prompts, params, found, strict=True):
        assert completion.prompt_token_ids == prompt
        assert completion.token_ids == llm.generate([prompt], own)[0].token_ids
        assert len(completion.token_ids) == own.max_tokens or completion.finish_reason == "stop"


@pytest.mark.slow
def test_a_stream_is_the_whole_in_pieces():
    llm, params = stories(), SamplingParams(temperature=0.7, seed=5, max_tokens=50, logprobs=2)
    deltas = list(llm.stream("Lily and Tom", params))
    whole = deltas[-1].completion
    assert len(deltas) > 3
    assert "".join(d.text for d in deltas) == whole.text
    assert [i for d in deltas for i in d.token_ids] == whole.token_ids
    assert [found for d in deltas for found in d.logprobs or ()] == whole.logprobs
    (again,) = llm.generate("Lily and Tom", params)
    assert again.text == whole.text == llm.tokenizer.decode(whole.token_ids)
    assert whole.timings.ttft_s > 0 and whole.timings.decode_steps == 49


@pytest.mark.slow
def test_stop_strings_and_ids():
    llm = stories()
    (free,) = llm.generate("Once upon a time", dataclasses.replace(GREEDY, max_tokens=60))
    stop = free.text[20:29]
    params = dataclasses.replace(GREEDY, max_tokens=60, stop=stop)
    (cut,) = llm.generate("Once upon a time", params)
    assert cut.text == free.text[: free.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)] and len(cut.token_ids) < len(free.token_ids)
    (kept,) = llm.generate("Once upon a time", dataclasses.replace(params, include_stop_str_in_output=True))
    assert kept.text == cut.text + stop
    (by_id,) = llm.generate("Once upon a time", dataclasses.replace(GREEDY, stop_token_ids=(free.token_ids[7],)))
    first = free.token_ids.index(free.token_ids[7])
    assert by_id.token_ids == free.token_ids[:first] and by_id.stop_reason == free.token_ids[7]


@pytest.mark.slow
def test_samples_seeds_and_logprobs():
    llm = random()
    params = SamplingParams(temperature=1.0, n=4, seed=11, max_tokens=12, logprobs=3, ignore_eos=True)
    (one,), (two,) = llm.generate([[4, 5]], params), llm.generate([[4, 5]], params)
    assert [s.token_ids for s in one.samples] == [s.token_ids for s in two.samples]
    assert len({tuple(s.token_ids) for s in one.samples}) > 1 and one.token_ids == one.samples[0].token_ids
    sample = one.samples[3]
    logits = np.asarray(llm.logits([[4, 5, *sample.token_ids]])[0, 1:-1], np.float64)
    expected = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    for row, found in zip(expected, sample.logprobs, strict=True):
        assert found.logprob == pytest.approx(row[found.token_id], abs=1e-3)
        assert found.rank == 1 + (row > row[found.token_id]).sum()
        assert list(found.top) == np.argsort(-row, kind="stable")[:3].tolist()


@pytest.mark.slow
def test_the_context_bounds_the_output():
    llm = random()
    (full,) = llm.generate([[1] * 100], SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True))
    assert len(full.token_ids) == 28 and full.finish_reason == "length"


@pytest.mark.parametrize(
    "prompt, params, message",
    [
        ("text", None, "expected token ids, since the folder has no tokenizer"),
        ([[]], None, "expected at least one token"),
        ([[96]], None, "expected an integer from 0 to 95, got 96"),
        ([[1] * 128], None, "leave no room in a context of 128"),
        ([1.5, 2], None, "expected an integer from 0 to 95, got 1.5"),
        (np.array([1.0, 2.0]), None, "expected an integer from 0 to 95, got 1.0"),
        ([[True, 2]], None, "expected an integer from 0 to 95, got True"),
        ([1, [2]], None, "expected a text or a sequence of token ids, got 1"),
        (b"ab", None, "expected a text, token ids, or a sequence of such, got b'ab'"),
        ([b"ab"], None, "expected an integer from 0 to 95, got b'ab'"),
        ({1: 2}, None, "expected a text, token ids, or a sequence of such, got {1: 2}"),
        ({1, 2}, None, "expected a text, token ids, or a sequence of such"),
        (None, None, "expected a text, token ids, or a sequence of such, got None"),
        (7, None, "expected a text, token ids, or a sequence of such, got 7"),
        ([[1]], [GREEDY, GREEDY], "params: expected one, or one for each of 1 prompts, got 2"),
        ([[1]], dict(n=1), "params: expected SamplingParams, or one for each prompt, got {'n': 1}"),
        ([[1]], SamplingParams(stop="x"), "stop: expected none, since the folder has no tokenizer"),
        ([[1]], SamplingParams(stop_token_ids=(96,)), "stop_token_ids: expected token ids below 96"),
        ([[1]] * 17, [GREEDY] * 16 + [SamplingParams(logit_bias={96: 1.0})], "logit_bias: expected token ids below 96"),
    ],
)
def test_bad_input(prompt, params, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        random().generate(prompt, params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "ids, message",
    [
        ([[96]], "token_ids: expected an integer from 0 to 95, got 96"),
        ([[-1]], "token_ids: expected an integer from 0 to 95, got -1"),
        ([[1.5]], "token_ids: expected an integer from 0 to 95, got 1.5"),
        ([[True]], "token_ids: expected an integer from 0 to 95, got True"),
        ([1, 2], "token_ids: expected shape [B, T], T from 1 to 128, got [1, 2]"),
        ([[1, 2], [3]], "token_ids: expected shape [B, T], T from 1 to 128, got 2 rows of [1, 2] ids"),
        ([[]], "token_ids: expected shape [B, T], T from 1 to 128"),
        ([], "token_ids: expected shape [B, T], T from 1 to 128"),
        (np.zeros((1, 129), int), "token_ids: expected shape [B, T], T from 1 to 128, got 1 rows of [129] ids"),
        ("ab", "token_ids: expected shape [B, T]"),
    ],
)
def test_logits_of_what_is_no_token(ids, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        random().logits(ids)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_context=129), "max_context: expected an integer from 1 to 128, the positions of the model, got 129"),
        (dict(max_context=0), "max_context: expected an integer from 1 to 128"),
        (dict(max_context=5.5), "max_context: expected an integer from 1 to 128, the positions of the model, got 5.5"),
        (dict(max_context=True), "max_context: expected an integer from 1 to 128"),
        (dict(dtype="float8"), "dtype: expected one of bfloat16, float16, float32, got 'float8'"),
        (dict(dtype=["float32"]), "dtype: expected one of bfloat16, float16, float32"),
        (dict(seed=1.5), "seed: expected an integer from 0 to"),
        (dict(implementation="fast"), "implementation"),
        (dict(prefill_backend="fast"), "prefill_backend: expected"),
    ],
)
def test_bad_options(options, message, monkeypatch):
    monkeypatch.setattr("tokenspeed.llm.random_model", lambda *_: pytest.fail("it was made before it was checked"))
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        LLM.random(CONFIG, **(dict(implementation="xla") | options))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(folder=5), "folder: expected a path, got 5"),
        (dict(folder="tiny", progress="yes"), "progress: expected True or False, got 'yes'"),
        (dict(folder="tiny", max_context=513), "max_context: expected an integer from 1 to 512"),
        (dict(folder="tiny", max_batched_tokens=126), "max_batched_tokens: expected an integer from 127"),
        (dict(folder="tiny", max_batched_tokens=512, batch_invariant=True), "max_batched_tokens: with batch_invariant"),
        (dict(folder="tiny", dtype="int8"), "dtype: expected one of bfloat16, float16, float32, got 'int8'"),
    ],
)
def test_a_checkpoint_is_loaded_when_the_options_are_right(options, message, monkeypatch):
    monkeypatch.setattr("tokenspeed.weights.checkpoint.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        LLM.from_pretrained(**options)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda llm: llm.stream([1], SamplingParams(n=2)), "n: expected 1 in a stream, got 2"),
        (
            lambda llm: llm.stream([1], "greedy"),
            "params: expected SamplingParams, or one for each prompt",
        ),
        (lambda llm: llm.stream([1.0], GREEDY), "prompts: expected an integer from 0 to 95, got 1.0"),
        (lambda llm: llm.warm_up(0, GREEDY), "prompt_tokens: expected an integer from 1 to 127, got 0"),
        (lambda llm: llm.warm_up(3.0, GREEDY), "prompt_tokens: expected an integer from 1 to 127, got 3.0"),
        (lambda llm: llm.warm_up(3, None), "params: expected SamplingParams, or one for each prompt, got None"),
    ],
)
def test_other_calls_say_at_once_what_is_wrong(call, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        call(random())


@pytest.mark.slow
@pytest.mark.parametrize("most, first", [(None, 330), (128, 110)])
def test_a_step_takes_as_many_tokens_of_prompts_as_asked_for(most, first):
    llm = LLM(random().model, implementation="xla", max_batch=3, max_batched_tokens=most)
    engine = offline(llm.model, llm.options)
    prompts = [[2 + i, *range(3, 94), *range(3, 21)] for i in range(3)]
    rows = [Row(0, one, GREEDY, 0, 0, tokenizer=None, max_context=llm.max_context, config=CONFIG) for one in prompts]
    for i, row in enumerate(rows):
        engine.add(i, row)
    engine.step()
    assert engine.metrics.prefill_tokens == first, "what is left is no page"
    while not engine.is_idle:
        engine.step()
    alone = LLM(random().model, implementation="xla").generate(prompts, GREEDY)
    assert [row.ids for row in rows] == [one.token_ids for one in alone]


@pytest.mark.slow
def test_times_are_those_of_running_and_fit_into_the_wall_clock():
    llm = LLM(random().model, implementation="xla")
    params, spans = dataclasses.replace(GREEDY, max_tokens=40, ignore_eos=True), []
    for _ in range(2):
        begun = time.perf_counter()
        (found,) = llm.generate([[1, 2, 3]], params)
        spans.append((found.timings, time.perf_counter() - begun))
    assert spans[0][0].compile_s > 0 and spans[1][0].compile_s == 0
    for timings, wall in spans:
        assert 0 < timings.compile_s + timings.ttft_s + timings.decode_s <= wall
        assert 0 < timings.queue_s < timings.ttft_s
        assert timings.tokens_per_s == timings.decode_steps / timings.decode_s and timings.decode_steps == 39
    assert llm.warm_up(3, params) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokens, changes", [(3, {}), (80, dict(temperature=0.8, n=3, max_tokens=2)), (20, dict(logit_bias={3: 1.0}))]
)
def test_what_is_warmed_up_is_not_compiled_again(tokens, changes):
    llm, params = LLM(random().model, implementation="xla"), dataclasses.replace(GREEDY, ignore_eos=True, **changes)
    assert llm.warm_up(tokens, params) > 0
    (found,) = llm.generate([[7] * tokens], params)
    assert all(sample.timings.compile_s == 0 for sample in found.samples)
    assert llm.warm_up(tokens, params) == 0


@pytest.fixture
def calls(monkeypatch):
    """The names of the programs that a call starts, and how many steps of those that decode."""
    seen = []

    def watched(name, program):
        def start(runner, rows, *arguments):
            seen.append((name, arguments[0]) if name == "steps" else name)
            with jax.transfer_guard_host_to_device("allow"):  # what the host tells the program travels with it
                return program(runner, rows, *arguments)

        return start

    for name in ("write_tables", "chunk", "first", "steps"):
        monkeypatch.setattr(Runner, name, watched(name, getattr(Runner, name)))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("params", [dict(), dict(temperature=0.8), dict(frequency_penalty=0.5)])
def test_the_host_does_nothing_on_the_device_between_the_programs_of_a_call(params, calls):
    """Of shapes seen before: what is computed or copied by itself, not by a program, is a wait before the token."""
    llm, compiled = LLM(random().model, implementation="xla"), []
    params = dataclasses.replace(GREEDY, max_tokens=STEPS + 2, ignore_eos=True, **params)
    llm.generate([[1, 2, 3]], params)
    calls.clear()

    def listen(event, duration_secs, **_):
        if event.startswith("/jax/core/compile/"):
            compiled.append((event, duration_secs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        # It forbids what jnp.asarray and device_put do, and with them operations one by one that have a constant.
        with jax.transfer_guard_host_to_device("disallow_explicit"):
            (found,) = llm.generate([[4, 5, 6, 7]], params)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled and found.timings.compile_s == 0
    tables = ["write_tables"] if params.needs_penalties else []
    assert calls == [*tables, "chunk", "first", ("steps", STEPS), ("steps", 1)]


@pytest.mark.slow
def test_calls_share_a_pool_and_see_nothing_of_each_other(monkeypatch):
    """The second prompt takes the pages that the first one left, and two streams run side by side."""
    pages = dict(kv_bytes=2 * 64 * CONFIG.kv_bytes_per_token(4), prefix_caching=False)
    llm, short = LLM(random().model, implementation="xla", max_batch=2, **pages), [50, 3, 7]
    params = dataclasses.replace(GREEDY, max_tokens=40, ignore_eos=True)
    (expected,) = random().generate([short], params)
    pools = []
    monkeypatch.setattr(llm_module, "offline", lambda *given: pools.append(offline(*given)) or pools[-1])
    llm.generate([list(range(80))], params)
    assert llm.generate([short], params)[0].token_ids == expected.token_ids
    one, two = llm.stream(short, params), llm.stream(short, params)
    next(one)
    next(two)
    one.close()
    assert list(two)[-1].completion.token_ids == expected.token_ids
    stream = llm.stream(short, params)
    next(stream)
    stream.close()
    assert llm.generate([short], params)[0].token_ids == expected.token_ids
    assert len(pools) == 1 and pools[0].is_idle and pools[0].pool.used == 0


@pytest.mark.slow
def test_a_model_that_is_exchanged_has_a_pool_of_its_own():
    llm = LLM(random().model, implementation="xla")
    prompt = list(range(80))  # longer than a page
    (expected,) = llm.generate([prompt], GREEDY)
    whole, llm.model = llm.model, jax.tree.map(lambda x: x * np.nan, llm.model)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="logits are not finite"):
            llm.generate([prompt], GREEDY)
    llm.model = whole
    assert llm.generate([prompt], GREEDY)[0].token_ids == expected.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_prompt_that_comes_again_is_not_computed_again(prefix_caching, monkeypatch):
    llm = LLM(random().model, implementation="xla", prefix_caching=prefix_caching)
    starts, dispatch = [], Runner.chunk
    monkeypatch.setattr(
        Runner, "chunk", lambda runner, chunks, shape: starts.append(chunks[0][1]) or dispatch(runner, chunks, shape)
    )
    prompt = list(range(80))
    one, two = (llm.generate([prompt], GREEDY)[0] for _ in range(2))
    assert one.token_ids == two.token_ids and starts == [0, 64 if prefix_caching else 0]
    assert (one.cached_tokens, two.cached_tokens) == (starts[0], starts[1])


@pytest.mark.slow
def test_no_rate_without_a_second_token():
    (found,) = random().generate([[1, 2, 3]], dataclasses.replace(GREEDY, max_tokens=1))
    assert found.timings.decode_steps == 0 and found.timings.tokens_per_s is None


@pytest.mark.slow
def test_logits_that_are_not_finite_fail():
    llm = LLM.random(CONFIG, implementation="xla")
    llm.model = jax.tree.map(lambda x: x * np.nan, llm.model)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        llm.generate([[1, 2]], GREEDY)


def test_the_small_model_has_a_name():
    llm = LLM.from_pretrained("tiny", implementation="xla", max_context=32)
    assert llm.model.config.vocab_size == 1024 and llm.tokenizer is not None and llm.max_context == 32
