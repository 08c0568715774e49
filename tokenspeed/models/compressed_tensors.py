"""Writes quantization_config, a field of a checkpoint's config.json, as the compressed-tensors library does."""

from typing import Any

from tokenspeed.models.quantisation import FLOATS, Quantisation, Scheme

VERSION = "0.20.1"
"""Of the library whose serialisation this is."""


def as_dict(quantisation: Quantisation) -> dict[str, Any]:
    """The field's value for schemes in the layouts PACKED and FLOATS; `hf_quantisation.read` is the inverse."""
    layouts = {scheme.layout for _, scheme in quantisation.schemes}
    return dict(
        config_groups={
            f"group_{number}": _group(targets, scheme) for number, (targets, scheme) in enumerate(quantisation.schemes)
        },
        format=layouts.pop() if len(layouts) == 1 else "mixed-precision",
        global_compression_ratio=None,
        ignore=list(quantisation.ignored),
        kv_cache_scheme=None,
        moe_sparsity_config=None,
        quant_method="compressed-tensors",
        quantization_status="compressed",
        sparsity_config={},
        transform_config={},
        version=VERSION,
    )


def _group(targets: tuple[str, ...], scheme: Scheme) -> dict[str, Any]:
    floats = scheme.layout == FLOATS
    return dict(
        format=scheme.layout,
        input_activations=_arguments(8, "float", "token", dynamic=True) if floats else None,
        output_activations=None,
        targets=list(targets),
        weights=_arguments(
            4 if scheme.format == "int4" else 8,
            "float" if floats else "int",
            "channel" if scheme.group is None else "group",
            group_size=scheme.group,
            symmetric=not scheme.zeros,
        ),
    )


def _arguments(
    bits: int, kind: str, strategy: str, *, group_size: int | None = None, symmetric: bool = True, dynamic: bool = False
) -> dict[str, Any]:
    return dict(
        dynamic=dynamic, group_size=group_size, num_bits=bits, strategy=strategy, symmetric=symmetric, type=kind
    )
