"""Accuracy of quantised weights: figures by their definitions, records, and what is refused."""

import dataclasses
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import pallas_kernels as pk
from experiments.accuracy import __main__ as accuracy
from experiments.accuracy.compare import compare
from experiments.accuracy.formats import PROJECTIONS, bytes_and_numbers, head_of, quantised
from experiments.accuracy.forward import forward, logits_in_float64
from experiments.accuracy.table import accuracy_table
from experiments.accuracy.text import file_rows, story_rows
from experiments.bench import log as logs
from experiments.bench.errors import UsageError
from experiments.bench.formats import Format, parsed
from tests.compiling import without_optimisations
from tests.experiments.decode.small import CONFIG as TIED
from tokenspeed import TINY
from tokenspeed.models import hf_config
from tokenspeed.models.decoder import Llama, QuantisedLinear
from tokenspeed.text.tokenizer import Tokenizer

__all__ = ["without_optimisations"]

CONFIG = dataclasses.replace(TIED, tied=False)


@pytest.fixture(scope="module")
def model():
    """Small, random, float32, at a scale at which the layers matter."""
    made = Llama(CONFIG, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, made)


@pytest.fixture(scope="module")
def rows():
    return list(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 25)).astype(np.int32))


@pytest.fixture(scope="module")
def tokenizer():
    found = Tokenizer.from_folder(TINY)
    assert found is not None
    return found


@pytest.fixture
def run(tmp_path):
    """Runs the command on few tokens of the model that ships; (exit status, records in the file)."""
    path = tmp_path / "records.jsonl"
    given = dict(tokens=24, length=24, results=path)

    def run(**options):
        status = accuracy.main([f"--{name}={value}" for name, value in (given | options).items()])
        return status, logs.read(path)

    return run


# --- models


@pytest.mark.slow
def test_both_forward_passes_are_the_model(model, rows):
    tokens = jnp.asarray(rows[0][None, :-1])
    expected = jax.jit(type(model).__call__)(model, tokens)
    logits, streams = forward(model, tokens)
    assert streams.shape == (CONFIG.num_layers, 1, 24, CONFIG.d_model)
    exact = logits_in_float64(model, tokens)
    assert exact.dtype == np.float64
    size = np.sqrt(np.mean(exact**2))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * size)
    np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5 * size)


@pytest.mark.slow
def test_a_quantised_model_is_the_one_with_what_its_numbers_stand_for(model, rows):
    made, dense = quantised(model, parsed("int4-g16-asym"), parsed("int8")), jax.tree.map(lambda x: x, model)
    assert made.head is not None and dense.head is not None
    head = made.head.weight
    assert isinstance(head, pk.QuantisedWeight) and head.format == "int8"
    for block, own in zip(dense.blocks, made.blocks, strict=True):
        for name in PROJECTIONS:
            weight = getattr(own, name).weight
            assert isinstance(weight, pk.QuantisedWeight) and weight.group == 16 and weight.zeros is not None
            getattr(block, name).values = nnx.Param(pk.dequantise(weight))
    dense.head.values = nnx.Param(pk.dequantise(head))
    found = compare(dense, made, rows)
    assert found["kl_mean"] < 1e-9 and found["top1"] == found["top1_float64"] == 1.0


@pytest.mark.slow
def test_what_is_quantised_and_its_bytes(model):
    assert all(not isinstance(block.down, QuantisedLinear) for block in model.blocks), "the given one is left alone"
    weights = sum(outputs * inputs for _, outputs, inputs in TIED.projections())
    rows = sum(outputs for _, outputs, _ in TIED.projections())
    assert bytes_and_numbers(quantised(model, parsed("int8"), None)) == (weights + 2 * rows, weights)
    groups = sum(outputs * -(-inputs // 16) for _, outputs, inputs in TIED.projections())
    found = bytes_and_numbers(quantised(model, parsed("int4-g16-asym"), None))
    assert found == (weights // 2 + 3 * groups, weights), "scales of 2 bytes, zero points of one"
    whole = sum(outputs * inputs for _, outputs, inputs in CONFIG.projections())
    assert bytes_and_numbers(quantised(model, parsed("int8"), parsed("int8")))[1] == whole, "the head's, too"
    block = quantised(model, parsed("int4-g40"), None).blocks[0]
    assert [linear.group for linear in (block.qkv, block.down) if isinstance(linear, QuantisedLinear)] == [None, 40]


def test_the_head():
    four, eight = parsed("int4-g32"), parsed("fp8")
    assert head_of(four, "", False) == head_of(eight, "int8", False) == Format(format="int8")
    assert head_of(four, "same", False) == four
    assert head_of(eight, "", False) is head_of(four, "none", False) is head_of(four, "", True) is None


# --- figures


def test_a_model_is_itself(model, rows):
    found = compare(model, model, rows)
    assert found["kl_mean"] == found["kl_p99"] == 0 and found["layer_errors"] == [0, 0]
    assert found["top1"] == found["top1_clear"] == found["top1_float64"] == 1 and found["margin_differing"] is None
    assert found["positions"] == 48 and found["perplexity"] == found["perplexity_reference"]


@pytest.mark.slow
def test_figures_are_what_they_are_called(model, rows):
    """Of one position a row, from logits."""
    other = quantised(model, parsed("int4"), None)
    pairs = [
        (row[:2], *(np.asarray(forward(one, row[None, :1])[0][0, 0], float) for one in (model, other))) for row in rows
    ]
    chances = [(row[1], *(np.exp(x) / np.exp(x).sum() for x in logits)) for row, *logits in pairs]
    kl = [(true * np.log(true / ours)).sum() for _, true, ours in chances]
    found = compare(model, other, [row for row, *_ in pairs])
    assert found["kl_mean"] == pytest.approx(np.mean(kl)) and found["kl_p99"] <= max(kl)
    assert found["top1"] == np.mean([true.argmax() == ours.argmax() for _, true, ours in chances])
    for field, at in (("perplexity_reference", 0), ("perplexity", 1)):
        nll = [-np.log(both[at][token]) for token, *both in chances]
        assert found[field] == pytest.approx(np.exp(np.mean(nll)))


@pytest.mark.slow
def test_fewer_bits_lose_more(model, rows):
    found = [compare(model, quantised(model, parsed(name), None), rows) for name in ("int8", "fp8", "int4")]
    for less, more in itertools.pairwise(found):
        assert 0 < less["kl_mean"] < more["kl_mean"]
        assert all(a < b for a, b in zip(less["layer_errors"], more["layer_errors"], strict=True))
    assert found[0]["kl_mean"] < 1e-3 and max(found[0]["layer_errors"]) < 0.02


# --- text


def test_rows_of_stories(tokenizer):
    rows = story_rows(tokenizer, 40, 3)
    assert [len(row) for row in rows] == [41] * 3 and all(row[0] == tokenizer.bos_id for row in rows)
    assert np.array_equal(rows, story_rows(tokenizer, 40, 3)) and not np.array_equal(rows[0], rows[1])


def test_rows_of_a_file(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Tom has a red ball. " * 20)
    ids = tokenizer.encode(path.read_text(), add_special_tokens=False)
    first, second = file_rows(str(path), tokenizer, 10, 2)
    assert list(first) == [tokenizer.bos_id, *ids[:10]] and list(second) == [tokenizer.bos_id, *ids[10:20]]
    with pytest.raises(UsageError, match=f"expected 500 tokens or more, got {len(ids)}"):
        file_rows(str(path), tokenizer, 10, 50)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="expected text in UTF-8"):
        file_rows(str(path), tokenizer, 10, 1)


# --- the command


@pytest.mark.slow
def test_records(run, capsys):
    status, (one,) = run(formats="int4-g32")
    assert status == 0
    assert (one["kind"], one["model"], one["status"], one["head"]) == ("accuracy", "tiny", "ok", "none")
    assert (one["text"], one["sequences"], one["length"], one["positions"]) == ("stories", 1, 24, 24)
    assert len(one["layer_errors"]) == 4 and one["sources"] and one["date"]
    assert one["model_bytes"] < one["reference_bytes"] == 2 * hf_config.from_folder(TINY).num_parameters
    assert one["bits_per_weight"] == 4.5 and one["top1"] == one["top1_float64"] > 0.8
    out = capsys.readouterr().out
    assert re.search(r"tiny +stories +int4-g32 +none +4\.50 .* 92 (met|missed) ", out) and "tiny in int4-g32: ok" in out


def test_what_cannot_be_made_is_a_record_that_says_why(run, monkeypatch, capsys):
    def fails(*arguments):
        raise ValueError("values: expected an even number of inputs")

    monkeypatch.setattr(accuracy, "quantised", fails)
    status, (one,) = run(formats="int4")
    assert status == 1 and one["status"] == "failed: ValueError: values: expected an even number of inputs"
    assert one["top1"] is None and "failed: ValueError" in accuracy_table([one])[1][0][-1]


def in_int8(folder):
    """Writes the model that ships as compressed-tensors' int8, and gives the folder."""
    shutil.copytree(TINY, folder)
    config = json.loads((TINY / "config.json").read_text())
    weights = dict(num_bits=8, type="int", symmetric=True, strategy="channel")
    groups = dict(group_0=dict(targets=["Linear"], weights=weights, input_activations=None))
    scheme = dict(quant_method="compressed-tensors", format="int-quantized", config_groups=groups, ignore=["lm_head"])
    (folder / "config.json").write_text(json.dumps(config | dict(quantization_config=scheme)))
    tensors = load_file(TINY / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        values = tensors[name].astype(np.float32)
        scales = np.abs(values).max(1, keepdims=True) / 127
        tensors[name] = np.round(values / scales).astype(np.int8)
        tensors[name.removesuffix("weight") + "weight_scale"] = scales
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_a_quantised_folder_is_compared_with_its_reference(run, tmp_path, capsys):
    folder = in_int8(tmp_path / "eight")
    status, (one,) = run(model=folder, reference="tiny")
    assert status == 0 and (one["model"], one["format"]) == ("eight", "int8 (int-quantized)")
    assert 0 < one["kl_mean"] < 1e-3 and one["bits_per_weight"] > 8
    capsys.readouterr()
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    config = json.loads((TINY / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | dict(rms_norm_eps=1e-6)))
    for options, message in (
        (dict(model=folder), "reference: expected the unquantised folder, since .*eight is quantised already"),
        (dict(model=folder, reference=folder), "reference: expected an unquantised model"),
        (dict(model=folder, reference=other), "reference: eps: expected 1e-05 as in .*eight, got 1e-06"),
        (dict(model=folder, reference="tiny", formats="int8"), "formats: expected none, since the model is quantised"),
    ):
        assert run(**options)[0] == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.match(f"error: {message}", error), error


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(formats="int3"), "formats: expected one of int8, fp8, int4, then -gN"),
        (dict(formats="int4-g0"), "formats: expected one of .*, got 'int4-g0'"),
        (dict(formats="fp8-asym"), "formats: fp8-asym: fp8 has no zero points"),
        (dict(head="int4"), "head: unknown 'int4'"),
        (dict(head="int8"), "head: expected none, since that of tiny is its embedding table"),
        (dict(reference="tiny"), "reference: expected none, since tiny is not quantised"),
        (dict(tokens=0), "tokens: expected 1 or more, got 0"),
        (dict(text="nowhere.txt"), "text: nowhere.txt: No such file"),
        (dict(model="nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, tmp_path, options, message, capsys):
    assert run(**options) == (2, []) and not (tmp_path / "records.jsonl").exists()
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"error: {message}", err), err
