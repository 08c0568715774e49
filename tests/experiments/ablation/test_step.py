"""The step with something left out: that it is left out, that the same is computed, and what its record says."""

import collections
import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pallas_kernels as pk
from experiments.ablation import __main__ as ablation
from experiments.ablation import oracle, unfused
from experiments.ablation.ablations import ABLATIONS, SHIPPED
from experiments.ablation.options import Options
from experiments.ablation.step import AblatedWorkload, Drift, compared
from experiments.bench import kernels
from experiments.bench.models import config_of
from experiments.bench.workload import Decoder, Workload
from experiments.decode.case import Found
from tests.experiments.ablation.conftest import CONFIG
from tests.pallas_kernels import lowering
from tokenspeed.engine import generation
from tokenspeed.engine.generation import Weights
from tokenspeed.models.decoder import Llama

OPTIONS = Options(models=("llama-3.2-1b",), steps=2, sequences=2, repeats=2)
SAME_PROGRAM = ("control", "command buffers", "loop on the device", "while loop in the command buffer")
"""They change how the program of a step is run, not what is in it."""
BY_NAME = {one.name: one for one in (SHIPPED, *ABLATIONS)}


def by_xla(name):
    """An ablation that needs no GPU."""
    return dataclasses.replace(BY_NAME[name], implementation="xla", compiler_options={})


@pytest.fixture(scope="module")
def decoder():
    """Of weights large enough that its tokens vary."""
    decoder = Decoder(CONFIG, "float32", 0)
    decoder.weights = Weights.of(jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, decoder.weights.model))
    return decoder


# --- what is left out


def step_of_a_model():
    """What a step of one layer of a model takes; to be traced."""
    config = config_of("llama-3.2-1b")
    config = dataclasses.replace(config, layers=config.layers[:1])
    weights = Weights.of(Llama(config, jnp.bfloat16, rngs=nnx.Rngs(0)))
    decoder = types.SimpleNamespace(config=config, dtype="bfloat16", seed=0, weights=weights)
    workload = Workload(decoder, batch=1, context=20, steps=1)
    return weights, workload.fresh(0), workload.rope


@pytest.fixture(scope="module")
def programs():
    """By ablation, the text of the step's program on an H200 before it is lowered."""
    arguments = jax.eval_shape(step_of_a_model)
    found = {}
    for name, one in BY_NAME.items():
        with one.applied(), lowering.for_gpu("h200"):

            def step(*arguments):
                return generation.decode_steps(
                    *arguments, steps=1, logprobs=None, implementation=one.implementation,
                    deferred_norm=one.deferred_norm, kernels=one.kernels(pk.DEVICES["h200"]),
                )  # fmt: skip

            found[name] = re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(step)(*arguments)))
    return found


def counts(text):
    """How often the kernels and the hooks are in a program."""
    kernels_of_a_step = r"\bname=(qkv|attention|out|gate_up|down|head|head_logits)\b"
    return collections.Counter(re.findall(kernels_of_a_step, text)) + collections.Counter(
        {hook: len(re.findall(rf"\b{hook}\b", text)) for hook in pk.HOOKS}
    )


@pytest.mark.slow
def test_what_an_ablation_leaves_out_is_not_in_its_program(programs):
    shipped = counts(programs[""])
    assert all(shipped[op] == 1 for op in ("qkv", "attention", "out", "gate_up", "down", "head"))
    of_integer_weights = {"load_words", "load_near", "load_vectors"}
    assert all(shipped[hook] > 0 for hook in set(pk.HOOKS) - of_integer_weights)
    for name, text in programs.items():
        found, one = counts(text), BY_NAME[name]
        assert (text == programs[""]) == (name in ("", *SAME_PROGRAM)), name
        for hook in one.hooks:
            assert found[hook] == 0, name
        if one.hooks:
            assert all(found[other] == shipped[other] for other in shipped if other not in one.hooks), name
    others = [text for name, text in programs.items() if name not in SAME_PROGRAM]
    assert len({*others}) == len(others), "no two leave out the same"
    fused = counts(programs["norm + rotation + cache write in qkv"])
    assert (fused["qkv"], fused["out"]) == (0, 2), "its product alone is a kernel"
    fused = counts(programs["norm + activation in gate_up"])
    assert (fused["gate_up"], fused["down"]) == (0, 2)
    fused = counts(programs["argmax in the head"])
    assert (fused["head"], fused["head_logits"]) == (0, 1)
    fused = counts(programs["attention in one launch"])
    assert (fused["attention"], fused["qkv"], fused["out"]) == (0, 1, 1)
    assert not counts(programs["all kernels"])


# --- that the same is computed


@pytest.mark.slow
def test_the_kernels_without_any_fusion_compute_the_same_step(decoder):
    """Interpreted, against float64."""
    ops = ("qkv", "attention", "out", "gate_up", "down", "head")
    apart = kernels.replaced(**{op: getattr(unfused, op) for op in ops})
    fused = dataclasses.replace(SHIPPED, implementation="interpret")
    bare = dataclasses.replace(fused, name="no fusion", kernels=lambda device: apart)
    workload = AblatedWorkload(decoder, [fused, bare], batch=1, context=20, steps=1)
    drift = Drift(workload, [fused, bare], sequences=2)
    for one in (fused, bare):
        found = drift.of(one)
        assert found == drift.of(dataclasses.replace(one, name="x", host_loop=True)), "the kernels are the same"
        # Float32 sums in another order: some 1e-7 of the logits' RMS, of which the largest difference is a few times.
        assert 0 < found["drift"] < 2e-6 and found["drift_max"] < 1e-5 and found["drift_kl"] < 1e-10
    assert drift.of(fused) != drift.of(bare), "they are other programs: their rounding differs"


@pytest.mark.slow
def test_oracle_is_the_model(decoder):
    """One more token after a prompt, in float64, is the last position of the whole model in float32."""
    model = decoder.weights.model
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 15)).astype(np.int32)
    workload = Workload(decoder, batch=2, context=14, steps=1)
    positions = jnp.broadcast_to(jnp.arange(14, dtype=jnp.int32), (2, 14))
    prefill = jax.jit(type(model).prefill, static_argnames="capacity")
    _, caches = prefill(model, workload.fresh(0).caches, tokens[:, :14], positions, workload.rope, capacity=14)
    found = oracle.logits(model, caches, jnp.asarray(tokens[:, 14]), jnp.full((2,), 14, jnp.int32))
    assert found.dtype == np.float64
    # Both round in float32 somewhere: the model everywhere, the oracle in the cache.
    expected = jax.jit(type(model).__call__)(model, tokens)[:, -1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_compared():
    truth = np.log([[0.5, 0.25, 0.25]])
    found = compared(np.log([[0.25, 0.5, 0.25]]), truth)
    assert found["drift_kl"] == pytest.approx(0.25 * np.log(2)) and found["drift_max"] == pytest.approx(np.log(2))
    assert found["drift"] == pytest.approx(np.log(2) * np.sqrt(2) / np.linalg.norm(truth))
    assert compared(truth, truth) == dict(drift=0, drift_max=0, drift_kl=0)


# --- the records


@pytest.fixture(scope="module")
def records(decoder):
    """Of the step by XLA; by the host's loop, with the logits in memory, and of one that cannot be compiled."""

    def none(*args, **how):
        raise RuntimeError("out of registers\nand more")

    chosen = [by_xla(name) for name in ("", "loop on the device", "argmax in the head", "deferred norm")]
    chosen[-1] = dataclasses.replace(chosen[-1], kernels=lambda device: kernels.replaced(qkv=none))
    step = ablation.Step(
        model="llama-3.2-1b", config=CONFIG, batch=2, context=20, dtype="f32", ceiling_gbps=4000.0,
        device=pk.DEVICES["h200"],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "Decoder", lambda *arguments: decoder)
        return list(ablation.measured(step, chosen, OPTIONS))


@pytest.mark.slow
def test_records_are_of_the_same_tokens_and_of_their_drift(records):
    assert [one["ablation"] for one in records] == ["", "loop on the device", "argmax in the head", "deferred norm"]
    for one in records[:3]:
        assert one["tokens_as_shipped"] == one["tokens_checked"] == 2 * 2 * 2, one["ablation"]
        assert 0 < one["drift"] < 2e-6 and one["drift_kl"] < 1e-10, one["ablation"]  # as above
        assert one["samples"] == 4 and one["ms_per_token"] > 0 and one["steps"] == 2, one["ablation"]
        assert (one["model"], one["batch"], one["context"], one["dtype"]) == ("llama-3.2-1b", 2, 20, "f32")
    assert records[1]["without"] == BY_NAME["loop on the device"].without and not records[1]["tried"]
    assert (records[0]["predicted_us"], records[1]["predicted_us"]) == (None, 100.0)
    assert records[2]["predicted_launches"] == 1 and records[2]["predicted_bytes"] == 8 * 2 * CONFIG.vocab_size


@pytest.mark.slow
def test_what_does_not_compile_has_a_record_without_figures(records):
    failed = records[3]
    assert failed["status"] == "compiling failed: RuntimeError: out of registers"
    assert failed["samples"] == failed["tokens_checked"] == 0 and "drift" not in failed and "ms_per_token" not in failed


def found(step_ms, tokens=0):
    one = Found()
    for _ in range(2):
        one.add(0, step_ms, np.full((2, 1), tokens))
    return one


def test_a_gain_needs_two_times_that_count():
    shipped, slower = found(1.0), found(1.5)
    tried = next(one for one in ABLATIONS if one.tried)
    left_out = ablation.figures(BY_NAME["control"], slower, shipped)
    assert (left_out["base_ms"], left_out["gain_us"]) == (1.0, 500.0)
    assert ablation.figures(tried, slower, shipped)["gain_us"] == -500.0, "the step with it is slower"
    assert ablation.figures(SHIPPED, shipped, shipped)["gain_us"] is None
    assert ablation.figures(tried, found(1.0, tokens=1), shipped)["tokens_as_shipped"] == 0
    slower.void("something ran beside it")
    assert "gain_us" not in ablation.figures(BY_NAME["control"], slower, shipped)
    assert "gain_us" not in ablation.figures(BY_NAME["control"], shipped, slower)


@pytest.mark.parametrize(
    "bad, message",
    [
        ("--models=gpt-2", "models: unknown 'gpt-2'"),
        ("--context=0", "context: expected 1 or more, got 0"),
        ("--context=131072", "context: 131072 and 127 steps more are not in the 131072 positions of llama-3.1-8b"),
        ("--ablations=magic", "ablations: unknown 'magic'"),
        ("--ablations=comand buffers", "did you mean command buffers?"),
        ("--repeats=1", "repeats: expected 2 or more, got 1"),
        ("--batch=0", "batch: expected 1 or more, got 0"),
        ("--dtype=int8", "dtype: unknown 'int8'"),
        ("--seed=-1", "seed: expected 0 or more, got -1"),
        ("--steps=1", "the ablation needs an NVIDIA GPU"),
    ],
)
def test_bad_arguments_are_one_line(bad, message, capsys, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert ablation.main([bad]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
