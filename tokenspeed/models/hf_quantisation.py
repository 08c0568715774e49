"""Reads quantization_config, a field of a checkpoint's config.json.

What it says of activations is left out: they stay in 16 bits or more, which is closer to the model that was quantised.
So does the KV cache unless 8 bits are asked for, by the checkpoint's scales where they are of that format. What changes
weights in a way that is not known here is refused by name.
"""

import re
from typing import Any

from tokenspeed.messages import listed, shown
from tokenspeed.models.fields import Fields
from tokenspeed.models.quantisation import (
    AWQ,
    FLOATS,
    FP8,
    GPTQ,
    GPTQ_V2,
    HEAD,
    INTEGERS,
    PACKED,
    PATTERN,
    Quantisation,
    Scheme,
)

METHODS = ("compressed-tensors", "awq", "gptq", "fp8")
RECORDS = frozenset({
    "quantization_status", "global_compression_ratio", "kv_cache_scheme", "version", "damp_percent", "meta",
    "static_groups", "true_sequential", "model_name_or_path", "model_file_base_name", "is_marlin_format",
    "quantizer", "pack_dtype", "activation_scheme", "exllama_config", "use_exllama", "max_input_length",
    "cache_block_outputs", "batch_size", "dataset", "tokenizer", "use_cuda_fp16", "model_seqlen",
    "module_name_preceding_first_block", "block_name_to_quantize", "backend", "do_fuse", "fuse_max_seq_len",
    "modules_to_fuse", "disable_exllama", "desc_act",
})  # fmt: skip
"""Fields that say how the numbers were found, or what to run them with, or that are read where they matter."""


def read(fields: Fields) -> Quantisation | None:
    """The field quantization_config of a config.json; None where there is none.

    Raises:
        ConfigError: a method, a format or a field is not supported or is wrong.
    """
    inner = fields.inner("quantization_config")
    if not inner.raw:
        return None
    method = inner.choice("quant_method", METHODS)
    found = {"compressed-tensors": _compressed, "awq": _awq, "gptq": _gptq, "fp8": _fp8}[method](inner)
    _no_others(inner)
    return found


def _no_others(inner: Fields) -> None:
    known = inner.used | RECORDS
    unknown = [name for name, value in inner.raw.items() if name not in known and value not in (None, False, [], {})]
    if unknown:
        raise inner.error(listed(unknown), "not supported")


def _targets(inner: Fields, name: str) -> tuple[str, ...]:
    found = inner.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise inner.error(name, f"expected a list of names, got {shown(found)}")
    for one in found:
        if one.startswith(PATTERN):
            try:
                re.compile(one.removeprefix(PATTERN))
            except re.error as error:
                raise inner.error(
                    name, f"expected a regular expression after re:, got {shown(one)} ({error})"
                ) from None
    return tuple(found)


def _compressed(inner: Fields) -> Quantisation:
    for name in ("sparsity_config", "transform_config"):
        value = inner.get(name, {})
        if isinstance(value, dict) and value.get("format") == "dense":
            continue
        if value:
            raise inner.error(name, f"{shown(value)} is not supported")
    layouts = (PACKED, INTEGERS, FLOATS, "naive-quantized", "mixed-precision")
    groups, kv = inner.inner("config_groups"), _kv_format(inner.inner("kv_cache_scheme"))
    layout = inner.choice("format", layouts if groups.raw else (*layouts, "dense"))
    if not groups.raw and kv is None:
        raise inner.error("config_groups", "expected at least one")
    schemes = []
    for name in groups.raw:
        group = groups.inner(name)
        own = layout if group.get("format") is None else group.choice("format", (PACKED, INTEGERS, FLOATS))
        targets = _targets(group, "targets")
        if unknown := [
            one for one in targets if "." not in one and one not in ("Linear", HEAD) and not one.startswith(PATTERN)
        ]:
            raise group.error("targets", f"{listed(unknown)}: not supported")
        weights = group.inner("weights")
        if not weights.raw:
            raise group.error("weights", "missing")
        schemes.append((targets, _compressed_scheme(weights, own)))
    return Quantisation(schemes=tuple(schemes), ignored=_targets(inner, "ignore"), head=True, kv=kv)


def _kv_format(scheme: Fields) -> str | None:
    """What the checkpoint's scales of keys and values are for, 'fp8' or 'int8'; None where it has none."""
    if not scheme.raw:
        return None
    kind, bits = scheme.choice("type", ("int", "float"), "int"), scheme.integer("num_bits")
    if bits != 8:
        raise scheme.error("num_bits", f"expected 8, got {bits}")
    scheme.choice("strategy", ("tensor", "attn_head"), "tensor")
    if not scheme.flag("symmetric", True):
        raise scheme.error("symmetric", "false is not supported")
    if scheme.get("dynamic", False) is not False:
        raise scheme.error("dynamic", f"{shown(scheme.get('dynamic'))} is not supported")
    return "fp8" if kind == "float" else "int8"


def _compressed_scheme(weights: Fields, layout: str) -> Scheme:
    kind = weights.choice("type", ("int", "float"), "int")
    bits = weights.integer("num_bits")
    strategies = ("tensor", "channel", "group", "block")
    size = weights.get("group_size")
    strategy = weights.choice(
        "strategy", strategies, "tensor" if size is None else "channel" if size == -1 else "group"
    )
    symmetric = weights.flag("symmetric", True)
    if weights.get("actorder") in ("group", "dynamic", True):
        raise weights.error("actorder", f"{shown(weights.get('actorder'))} is not supported")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise weights.error("num_bits", f"expected int of 4 or 8 bits or float of 8, got {kind} of {bits}")
    if layout in ("naive-quantized", "mixed-precision"):
        layout = FLOATS if kind == "float" else INTEGERS
    if (layout == FLOATS) != (kind == "float") or (layout == INTEGERS and bits != 8):
        raise weights.error("type", f"{kind} of {bits} bits is not supported in the format {layout}")
    format = "fp8" if kind == "float" else f"int{bits}"
    if format == "fp8" and not symmetric:
        raise weights.error("symmetric", "false is not supported for float")
    outputs, group = {"tensor": 0, "channel": 1, "group": 1, "block": 0}[strategy], None
    if strategy == "group":
        group = weights.integer("group_size")
    elif size not in (None, -1):
        raise weights.error("group_size", f"{shown(size)} is not supported for {strategy}")
    if strategy == "block":
        outputs, group = _block(weights, "block_structure")
    else:
        weights.get("block_structure")
    return Scheme(layout=layout, format=format, group=group, zeros=not symmetric, outputs=outputs)


def _block(fields: Fields, name: str) -> tuple[int, int]:
    value = fields.get(name)
    if isinstance(value, str) and re.fullmatch(r"\d+x\d+", value):
        value = [int(size) for size in value.split("x")]
    if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size > 0 for size in value):
        raise fields.error(name, f"expected two positive sizes, got {shown(value)}")
    return value[0], value[1]


def _four_bits(inner: Fields, name: str = "bits") -> None:
    if (bits := inner.integer(name)) != 4:
        raise inner.error(name, f"expected 4, got {bits}")


def _group(inner: Fields) -> int | None:
    size: Any = inner.get("group_size", inner.get("q_group_size", 128))
    if size == -1:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise inner.error("group_size", f"expected a positive integer or -1, got {shown(size)}")
    return size


def _awq(inner: Fields) -> Quantisation:
    _four_bits(inner, "w_bit" if "w_bit" in inner.raw else "bits")
    inner.choice("version", ("gemm", "GEMM"), "gemm")
    scheme = Scheme(layout=AWQ, format="int4", group=_group(inner), zeros=inner.flag("zero_point", True))
    return Quantisation(schemes=((("Linear",), scheme),), ignored=_targets(inner, "modules_to_not_convert"), parts=True)


def _gptq(inner: Fields) -> Quantisation:
    bits = inner.integer("bits")
    if bits not in (4, 8):
        raise inner.error("bits", f"expected 4 or 8, got {bits}")
    if inner.get("lm_head", False) is not False:
        raise inner.error("lm_head", f"{shown(inner.get('lm_head'))} is not supported")
    if inner.get("dynamic"):
        raise inner.error("dynamic", "overrides of modules are not supported")
    layout = inner.choice("checkpoint_format", (GPTQ, GPTQ_V2), GPTQ)
    inner.get("sym")  # zero points are there all the same
    scheme = Scheme(layout=layout, format=f"int{bits}", group=_group(inner), zeros=True)
    return Quantisation(schemes=((("Linear",), scheme),), ignored=_targets(inner, "modules_to_not_convert"), parts=True)


def _fp8(inner: Fields) -> Quantisation:
    outputs, group = 0, None
    if inner.get("weight_block_size") is not None:
        outputs, group = _block(inner, "weight_block_size")
    if inner.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise inner.error("fmt", f"expected e4m3, got {shown(inner.get('fmt'))}")
    ignored = _targets(inner, "modules_to_not_convert") + _targets(inner, "ignored_layers")
    scheme = Scheme(layout=FP8, format="fp8", group=group, outputs=outputs)
    return Quantisation(schemes=((("Linear",), scheme),), ignored=ignored, parts=True)
