"""How a model is quantised: the formats that are tried, and the model with its projections in one of them."""

import functools
import math

import jax
import jax.numpy as jnp

import pallas_kernels as pk
from experiments.bench.formats import Format
from tokenspeed.models.decoder import Linear, Llama, QuantisedLinear
from tokenspeed.models.quantisation import Scheme

DEFAULT = (
    "int8", "int8-a8", "fp8", "int4-g128", "int4-g64", "int4-g32", "int4-g32-asym", "int4-g128-a8", "int4-g32-a8",
)  # fmt: skip
TARGETS = {"int8": 0.99, "fp8": 0.975, "int4-g32": 0.92}
"""Top-1 agreement that a format is to have at least."""
HEADS = ("int8", "none", "same")
"""What the head of a model that is not tied may be stored as."""
PROJECTIONS = ("qkv", "out", "gate_up", "down")
SCALE_DTYPE = jnp.bfloat16
"""As checkpoints of 16-bit models hold them."""


def name_of(scheme: Scheme) -> str:
    """That of a checkpoint's scheme, with the layout of its tensors."""
    group = scheme.group if scheme.outputs == 1 else None
    name = Format(format=scheme.format, group=group, symmetric=not scheme.zeros).name
    return f"{name} ({scheme.layout})"


def head_of(format: Format, head: str, tied: bool) -> Format | None:
    """What the head is stored as; `head` is one of `HEADS`, or '' for int8 with int4 and none else."""
    if tied or head == "none":
        return None
    if head == "same":
        return format
    return Format(format="int8", activations=format.activations) if head == "int8" or format.format == "int4" else None


def quantised(model: Llama, format: Format, head: Format | None) -> Llama:
    """A model whose projections are quantised; the rest is shared with the one that is given.

    Raises:
        ValueError: a projection cannot be stored so.
    """
    made = jax.tree.map(lambda x: x, model)
    for block in made.blocks:
        for name in PROJECTIONS:
            setattr(block, name, _quantised(getattr(block, name), format))
    if head is not None:
        assert made.head is not None
        made.head = _quantised(made.head, head)
    return made


def _quantised(linear: Linear, format: Format) -> QuantisedLinear:
    return QuantisedLinear(_rounded(linear.weight, format))


@functools.partial(jax.jit, static_argnames="format")
def _rounded(weight: pk.DenseWeight, format: Format) -> pk.QuantisedWeight:
    """To nearest; a group that is longer than its rows is the row."""
    group = None if format.group is None or format.group >= weight.shape[-1] else format.group
    return pk.quantise(
        weight.values, format.format, group=group, symmetric=format.symmetric, scale_dtype=SCALE_DTYPE,
        dtype=weight.values.dtype, bias=weight.bias, rotary_dim=weight.rotary_dim, activations=format.activations,
    )  # fmt: skip


def bytes_and_numbers(model: Llama) -> tuple[int, int]:
    """Of the quantised projections, scales and zero points included: bytes, and how many numbers they stand for."""
    found = [getattr(block, name) for block in model.blocks for name in PROJECTIONS] + [model.head]
    weights = [linear.weight for linear in found if isinstance(linear, QuantisedLinear)]
    return sum(weight.nbytes for weight in weights), sum(math.prod(weight.shape) for weight in weights)
