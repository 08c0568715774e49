"""Quantised checkpoints: each layout written here from its definition, loaded, and what is refused."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import pallas_kernels as pk
from tests.pallas_kernels.marks import slow
from tests.tokenspeed.models.test_hf_config import LLAMA
from tests.tokenspeed.shared import folder
from tokenspeed import LLM, SamplingParams
from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError
from tokenspeed.models.quantisation import Quantisation, Scheme
from tokenspeed.weights import checkpoint
from tokenspeed.weights.shards import CheckpointError

CONFIG = dict(
    model_type="llama", vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-5,
    torch_dtype="float32",
)  # fmt: skip
SIZES = dict(
    q_proj=(64, 64), k_proj=(32, 64), v_proj=(32, 64), o_proj=(64, 64), gate_proj=(96, 64), up_proj=(96, 64),
    down_proj=(64, 96),
)  # fmt: skip
LAYER = "model.layers.0."
AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of the gemm packing: whose output each nibble of a word is, from the lowest."""


def name_of(module):
    return f"{LAYER}{'self_attn' if module[0] in 'qkvo' and module != 'up_proj' else 'mlp'}.{module}"


def words(values, bits):
    """uint [..., n] as int32 [..., ceil(n / per word)], the first in the lowest bits."""
    per_word = 32 // bits
    values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % per_word)])
    values = values.reshape(*values.shape[:-1], -1, per_word).astype(np.uint64)
    return sum(values[..., i] << np.uint64(bits * i) for i in range(per_word)).astype(np.uint32).view(np.int32)


def drawn(rng, outputs, inputs, *, bits=4, group=32, zeros=False, outputs_each=1):
    """Unsigned numbers [O, I], scales and zero points of groups, and what they stand for."""
    half = 1 << (bits - 1)
    values = rng.integers(0, 2 * half, (outputs, inputs))
    groups = 1 if group is None else -(-inputs // group)
    rows = 1 if outputs_each == 0 else -(-outputs // outputs_each)
    scales = rng.uniform(0.01, 0.1, (rows, groups)).astype(np.float16)
    points = rng.integers(1, 2 * half, (rows, groups)) if zeros else np.full((rows, groups), half)

    def spread(x):
        x = np.repeat(x, outputs if outputs_each == 0 else outputs_each, axis=0)[:outputs]
        return np.repeat(x, group or inputs, axis=1)[:, :inputs]

    return values, scales, points, ((values - spread(points)) * spread(scales).astype(np.float64))


def compressed(layout, *, bits=4, kind="int", group=None, symmetric=True, strategy="group", **weights):
    own = dict(num_bits=bits, type=kind, symmetric=symmetric, strategy=strategy, group_size=group) | weights
    return dict(
        quant_method="compressed-tensors", format=layout, ignore=["lm_head"],
        config_groups=dict(group_0=dict(targets=["Linear"], weights=own, input_activations=None)),
    )  # fmt: skip


def write_awq(rng, outputs, inputs):
    values, scales, zeros, exact = drawn(rng, outputs, inputs, zeros=True)

    def packed(x):  # [n, O]
        return words(x.reshape(len(x), -1, 8)[..., AWQ_OUTPUTS], 4)[..., 0]

    return dict(qweight=packed(values.T), qzeros=packed(zeros.T), scales=scales.T), exact


def write_gptq(rng, outputs, inputs, *, bits=4, version=1):
    values, scales, zeros, exact = drawn(rng, outputs, inputs, bits=bits, zeros=True)
    stored = zeros - (version == 1)
    return dict(
        qweight=words(values, bits).T, qzeros=words(stored.T, bits), scales=scales.T,
        g_idx=np.arange(inputs, dtype=np.int32) // 32,
    ), exact  # fmt: skip


def write_packed(rng, outputs, inputs, *, bits=4, group: int | None = 32, zeros=False):
    values, scales, points, exact = drawn(rng, outputs, inputs, bits=bits, group=group, zeros=zeros)
    found = dict(weight_packed=words(values, bits), weight_scale=scales, weight_shape=np.array([outputs, inputs]))
    if zeros:
        found["weight_zero_point"] = words(points.T, bits).T
    return found, exact


def write_int8(rng, outputs, inputs, *, zeros=False, outputs_each=1):
    values, scales, points, exact = drawn(
        rng, outputs, inputs, bits=8, group=None, zeros=zeros, outputs_each=outputs_each
    )
    scales = scales if outputs_each else scales.reshape(1)
    found = dict(weight=(values - 128).astype(np.int8), weight_scale=scales)
    return found | (dict(weight_zero_point=(points - 128).astype(np.int8)) if zeros else {}), exact


def write_fp8(rng, outputs, inputs, *, name="weight_scale", group=None, outputs_each=1, shape=None):
    _, scales, _, _ = drawn(rng, outputs, inputs, group=group, outputs_each=outputs_each)
    values = rng.standard_normal((outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    spread = np.repeat(scales, outputs if outputs_each == 0 else outputs_each, axis=0)[:outputs]
    spread = np.repeat(spread, group or inputs, axis=1)[:, :inputs]
    exact = values.astype(np.float64) * spread.astype(np.float64)
    scales = scales.astype(np.float32)
    return {"weight": values, name: scales if shape is None else scales.reshape(shape)}, exact


LAYOUTS = {
    "awq": (dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm"), write_awq, {}),
    "gptq": (dict(quant_method="gptq", bits=4, group_size=32, sym=False, desc_act=False), write_gptq, {}),
    "gptq-8": (dict(quant_method="gptq", bits=8, group_size=32), write_gptq, dict(bits=8)),
    "gptq-v2": (
        dict(quant_method="gptq", bits=4, group_size=32, checkpoint_format="gptq_v2"), write_gptq, dict(version=2)
    ),
    "w4a16": (compressed("pack-quantized", group=32), write_packed, {}),
    "w4a16-zeros": (compressed("pack-quantized", group=32, symmetric=False), write_packed, dict(zeros=True)),
    "w4a16-channel": (compressed("pack-quantized", strategy="channel"), write_packed, dict(group=None)),
    "w4a16-ragged": (compressed("pack-quantized", group=40), write_packed, dict(group=40)),
    "w8a16": (compressed("pack-quantized", bits=8, group=32), write_packed, dict(bits=8)),
    "w8a16-zeros": (
        compressed("pack-quantized", bits=8, group=32, symmetric=False), write_packed, dict(bits=8, zeros=True)
    ),
    "w8a8": (compressed("int-quantized", bits=8, strategy="channel"), write_int8, {}),
    "w8a8-zeros": (
        compressed("int-quantized", bits=8, strategy="channel", symmetric=False), write_int8, dict(zeros=True)
    ),
    "w8a8-tensor": (compressed("int-quantized", bits=8, strategy="tensor"), write_int8, dict(outputs_each=0)),
    "fp8-channel": (compressed("float-quantized", bits=8, kind="float", strategy="channel"), write_fp8, {}),
    "fp8-tensor": (
        compressed("float-quantized", bits=8, kind="float", strategy="tensor"), write_fp8,
        dict(outputs_each=0, shape=(1,)),
    ),
    "fp8-compressed-blocks": (
        compressed("float-quantized", bits=8, kind="float", strategy="block", block_structure=[16, 48]), write_fp8,
        dict(outputs_each=16, group=48),
    ),
    "fp8-blocks": (
        dict(quant_method="fp8", weight_block_size=[48, 32]), write_fp8,
        dict(name="weight_scale_inv", outputs_each=48, group=32),
    ),
    "fp8-one-scale": (dict(quant_method="fp8"), write_fp8, dict(outputs_each=0, shape=())),
}  # fmt: skip


QUICK = ("awq", "fp8-blocks")


def save(path, tensors, config):
    """Safetensors by hand, since its writer for NumPy has no name for fp8."""
    dtypes = dict(float32="F32", float16="F16", int32="I32", int64="I64", int8="I8", float8_e4m3fn="F8_E4M3")
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = dict(dtype=dtypes[array.dtype.name], shape=list(array.shape), data_offsets=offsets)
        data += raw
    text = json.dumps(header).encode()
    path.mkdir(exist_ok=True)
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (path / "config.json").write_text(json.dumps(config))


def written(path, layout, **change):
    """A checkpoint in that layout, and its projections in float64."""
    scheme, write, how = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((40, 64)).astype(np.float32),
        "lm_head.weight": rng.standard_normal((40, 64)).astype(np.float32),
        "model.norm.weight": np.ones(64, np.float32),
    } | {f"{LAYER}{x}_layernorm.weight": np.ones(64, np.float32) for x in ("input", "post_attention")}
    exact = {}
    for module, sizes in SIZES.items():
        found, exact[module] = write(rng, *sizes, **how)
        tensors |= {f"{name_of(module)}.{end}": value for end, value in found.items()}
    config = CONFIG | dict(quantization_config=scheme | change)
    save(path, tensors, config)
    return tensors, exact, config


@pytest.mark.parametrize("layout", [x if x in QUICK else slow(x) for x in LAYOUTS])
def test_what_a_checkpoint_holds(layout, tmp_path):
    """Every projection is what its tensors stand for, exactly, where the kernels look for it."""
    _, exact, _ = written(tmp_path / "model", layout)
    block = checkpoint.load(tmp_path / "model").blocks[0]
    q, k, v = (exact[x].astype(np.float32).T.reshape(64, -1, 16) for x in ("q_proj", "k_proj", "v_proj"))
    expected = dict(
        qkv=pk.pack_qkv(*map(jnp.asarray, (q, k, v))).values,
        gate_up=np.stack([exact["gate_proj"], exact["up_proj"]], axis=1),
        out=exact["o_proj"],
        down=exact["down_proj"],
    )
    for name, values in expected.items():
        np.testing.assert_allclose(pk.dequantise(getattr(block, name).weight), values, rtol=1e-6, atol=0)


QUANTISED = ("q-ct-w4a16", "q-awq", "q-gptq", "q-ct-fp8", "q-fp8-block")
TOLERANCE = 2e-4
"""Of a logit: float32 sums in another order; logits are of the order of 1."""


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTISED)
def test_logits_of_other_tools_folders(name):
    path = folder("goldens", name)
    golden = load_file(path / "golden.safetensors")
    model = checkpoint.load(path, dtype="float32")
    assert isinstance(model.blocks[0].qkv.weight, pk.QuantisedWeight)
    found = model(jnp.asarray(golden["input_ids"], jnp.int32))
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_the_engine_runs_them():
    """Greedy, against the golden's text."""
    path = folder("goldens", "q-awq")
    golden = load_file(path / "golden.safetensors")
    llm = LLM.from_pretrained(path, dtype="float32", max_context=96, implementation="xla")
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    texts = llm.generate([list(map(int, row)) for row in golden["input_ids"]], params)
    assert [one.token_ids for one in texts] == golden["greedy"][:, 48:].tolist()


@pytest.mark.slow
def test_activations_may_be_rounded():
    path = folder("goldens", "q-ct-w4a16")
    golden = load_file(path / "golden.safetensors")
    llm = LLM.from_pretrained(path, dtype="float32", implementation="xla", activations="int8")
    weight = llm.model.blocks[0].down.weight
    assert isinstance(weight, pk.QuantisedWeight) and weight.activations == "int8"
    difference = np.asarray(llm.logits(golden["input_ids"])) - golden["logits"]
    assert TOLERANCE < np.sqrt(np.mean(difference**2)) < 0.02 * np.std(golden["logits"])


INT4, FP8 = (Scheme(layout="pack-quantized", format=format) for format in ("int4", "fp8"))


@pytest.mark.parametrize(
    "activations, scheme, message",
    [
        ("int4", INT4, "activations: expected one of int8, got 'int4'"),
        ("int8", FP8, "expected int8 or int4 weights"),
        ("int8", dataclasses.replace(INT4, group=24), "in runs of 16"),
        ("int8", None, "activations: expected none, since the model is not quantised"),
    ],
)
def test_activations_that_cannot_be(activations, scheme, message):
    quantisation = scheme and Quantisation(schemes=((("Linear",), scheme),))
    config = dataclasses.replace(hf_config.from_dict(LLAMA), quantisation=quantisation)
    with pytest.raises(ValueError) as error:
        config.with_activations(activations)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert config.with_activations(None) is config


def refused(path, message, **change):
    with pytest.raises((CheckpointError, ConfigError)) as error:
        checkpoint.load(path, **change)
    text = str(error.value)
    assert message in text and "\n" not in text


def test_inputs_in_the_order_of_their_activations(tmp_path):
    tensors, _, config = written(tmp_path / "model", "gptq")
    name = f"{name_of('q_proj')}.g_idx"
    tensors[name] = tensors[name][::-1]
    save(tmp_path / "model", tensors, config)
    refused(tmp_path / "model", f"{name}: expected inputs in order; desc_act is not supported")


@pytest.mark.parametrize(
    "layout, change, message",
    [
        ("w4a16", {f"{LAYER}mlp.up_proj.weight_scale": None}, "missing: model.layers.0.mlp.up_proj.weight_scale"),
        (
            "w4a16", {f"{LAYER}mlp.up_proj.weight_scale": np.ones((96, 3), np.float16)},
            "of another shape: model.layers.0.mlp.up_proj.weight_scale [96, 3] instead of [96, 2]",
        ),
        (
            "w8a8", {f"{LAYER}mlp.up_proj.weight": np.ones((96, 64), np.float16)},
            "of another dtype: model.layers.0.mlp.up_proj.weight F16 in model.safetensors instead of I8",
        ),
        ("w8a8", {f"{LAYER}mlp.up_proj.weight_g_idx": np.ones(64, np.int32)}, "unexpected: model.layers.0.mlp.up"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(layout, change, message, tmp_path):
    tensors, _, config = written(tmp_path / "model", layout)
    tensors = {name: value for name, value in (tensors | change).items() if value is not None}
    save(tmp_path / "model", tensors, config)
    refused(tmp_path / "model", message)


def test_what_is_said_of_activations_and_of_the_cache_changes_nothing(tmp_path):
    tensors, _, config = written(tmp_path / "model", "fp8-tensor", kv_cache_scheme=dict(num_bits=8, type="float"))
    tensors[f"{name_of('q_proj')}.input_scale"] = np.ones(1, np.float32)
    tensors[f"{name_of('k_proj')}.k_scale"] = np.ones(1, np.float32)
    save(tmp_path / "model", tensors, config)
    checkpoint.load(tmp_path / "model")


def test_not_a_number_in_fp8(tmp_path):
    tensors, _, config = written(tmp_path / "model", "fp8-channel")
    tensors[f"{name_of('up_proj')}.weight"][3, 5] = np.nan
    save(tmp_path / "model", tensors, config)
    refused(tmp_path / "model", "mlp.up_proj: expected finite numbers in fp8, got NaN")


def test_a_group_beyond_the_inputs(tmp_path):
    scheme = compressed("pack-quantized", group=128)
    config = hf_config.from_dict(CONFIG | dict(quantization_config=scheme))
    _ = written(tmp_path / "model", "w4a16")
    refused(tmp_path / "model", "q_proj: expected groups of at most its 64 inputs, got 128", config=config)


def test_projections_of_one_product_are_quantised_alike(tmp_path):
    scheme = compressed("pack-quantized", group=32) | dict(ignore=["lm_head", "re:.*k_proj"])
    config = hf_config.from_dict(CONFIG | dict(quantization_config=scheme))
    _ = written(tmp_path / "model", "w4a16")
    refused(tmp_path / "model", "self_attn.v_proj: expected them to be quantised alike", config=config)


def test_modules_with_schemes_of_their_own_and_others_that_have_none(tmp_path):
    """The MLP in int8, attention in int4 but for its output, which is not quantised, and the head in int8."""
    scheme = compressed("mixed-precision")
    eight = dict(num_bits=8, type="int", symmetric=True, strategy="channel")
    scheme["ignore"] = [name_of("o_proj")]
    scheme["config_groups"] = dict(
        all=dict(targets=["Linear"], weights=dict(eight), format="int-quantized"),
        attention=dict(
            targets=["re:.*self_attn.*"], format="pack-quantized",
            weights=dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32),
        ),
    )  # fmt: skip
    tensors, exact, _ = written(tmp_path / "model", "w4a16")
    rng = np.random.default_rng(1)
    for module in ("gate_proj", "up_proj", "down_proj"):
        found, exact[module] = write_int8(rng, *SIZES[module])
        tensors = {name: value for name, value in tensors.items() if not name.startswith(name_of(module))}
        tensors |= {f"{name_of(module)}.{end}": value for end, value in found.items()}
    found, head = write_int8(rng, 40, 64)
    tensors = {name: value for name, value in tensors.items() if not name.startswith((name_of("o_proj"), "lm_head"))}
    tensors |= {f"lm_head.{end}": value for end, value in found.items()}
    tensors[f"{name_of('o_proj')}.weight"] = exact["o_proj"].astype(np.float32)
    save(tmp_path / "model", tensors, CONFIG | dict(quantization_config=scheme))
    model = checkpoint.load(tmp_path / "model")
    block = model.blocks[0]
    assert [w.format for w in (block.qkv.weight, block.down.weight, model.head.weight)] == ["int4", "int8", "int8"]
    assert isinstance(block.out.weight, pk.DenseWeight)
    np.testing.assert_allclose(pk.dequantise(block.down.weight), exact["down_proj"], rtol=1e-6)
    np.testing.assert_allclose(pk.dequantise(model.head.weight), head, rtol=1e-6)
    total = sum(x.nbytes for x in (block.qkv.weight, block.gate_up.weight, block.down.weight, model.head.weight))
    assert abs(model.config.weights_bytes(4) - total - 4 * (64 * 64 + 40 * 64 + 3 * 64)) <= 0


def test_a_quantised_model_is_not_saved(tmp_path):
    written(tmp_path / "model", "awq")
    with pytest.raises(CheckpointError, match="a quantised model cannot be saved"):
        checkpoint.save(tmp_path / "other", checkpoint.load(tmp_path / "model"))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_random_weights_of_a_quantised_config():
    config = hf_config.from_dict(CONFIG | dict(quantization_config=LAYOUTS["awq"][0]))
    llm = LLM.random(config, dtype="float32", max_context=32, implementation="xla")
    weight = llm.model.blocks[0].down.weight
    assert isinstance(weight, pk.QuantisedWeight) and weight.format == "int4" and weight.zeros is not None
    assert 0.01 < float(jnp.std(pk.dequantise(weight))) < 0.04
    assert jnp.all(jnp.isfinite(llm.logits([[1, 2, 3]])))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(quant_method="bitsandbytes"), "quant_method: expected one of compressed-tensors, awq, gptq, fp8"),
        (dict(quant_method="awq"), "bits: missing"),
        (dict(quant_method="awq", bits=3), "bits: expected 4, got 3"),
        (dict(quant_method="awq", bits=4, version="gemv"), "version: expected one of gemm"),
        (dict(quant_method="awq", bits=4, group_size=0), "group_size: expected a positive integer or -1, got 0"),
        (dict(quant_method="gptq", bits=2), "bits: expected 4 or 8, got 2"),
        (dict(quant_method="gptq", bits=4, lm_head=True), "lm_head: True is not supported"),
        (dict(quant_method="gptq", bits=4, dynamic={"-:.*down": {}}), "dynamic: overrides of modules are not"),
        (dict(quant_method="gptq", bits=4, checkpoint_format="marlin"), "checkpoint_format: expected one of gptq"),
        (dict(quant_method="gptq", bits=4, rotation="hadamard"), "rotation: not supported"),
        (dict(quant_method="fp8", weight_block_size=[128]), "weight_block_size: expected two positive sizes"),
        (dict(quant_method="fp8", fmt="e5m2"), "fmt: expected e4m3, got 'e5m2'"),
        (compressed("marlin-24"), "format: expected one of pack-quantized"),
        (compressed("pack-quantized", bits=3, group=32), "weights.num_bits: expected int of 4 or 8 bits or float of 8"),
        (compressed("pack-quantized", kind="float", bits=8), "weights.type: float of 8 bits is not supported in"),
        (compressed("pack-quantized"), "weights.group_size: missing"),
        (compressed("pack-quantized", group=32, actorder="group"), "weights.actorder: 'group' is not supported"),
        (compressed("float-quantized", bits=8, kind="float", strategy="tensor_group"), "strategy: expected one of"),
        (compressed("pack-quantized", group=32) | dict(sparsity_config=dict(format="sparse")), "sparsity_config: "),
        (compressed("pack-quantized", group=32) | dict(transform_config=dict(a=1)), "transform_config: "),
        (compressed("pack-quantized", group=32) | dict(ignore=["re:("]), "ignore: expected a regular expression"),
        (compressed("pack-quantized", group=32) | dict(ignore="lm_head"), "ignore: expected a list of names"),
        (compressed("pack-quantized", group=32) | dict(config_groups={}), "config_groups: expected at least one"),
    ],
)
def test_schemes_that_are_refused(change, message):
    with pytest.raises(ConfigError) as error:
        hf_config.from_dict(CONFIG | dict(quantization_config=change))
    text = str(error.value)
    assert text.startswith("quantization_config.") and message in text and "\n" not in text
