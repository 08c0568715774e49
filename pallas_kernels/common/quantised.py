"""Quantised weights: rows of small integers or 8-bit floats, with a scale for each row or each group of its inputs.

A number is `(stored - zero) * scale`; without zeros it is `stored * scale`. The rows lie as those of a `DenseWeight`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import checks

FORMATS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn, "int4": jnp.uint8}
"""What a weight may be stored as, and the dtype of its array: fp8 is e4m3 (Micikevicius et al. 2022)."""
LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
"""What the largest number of a group is stored as, where groups are symmetric about 0."""
ROUNDED_ACTIVATIONS = ("int8",)
"""What `QuantisedWeight.activations` may be beside None."""
RUN = 16
"""Neighbouring inputs whose activations share a scale where they are integers."""
OFFSET = 8
"""Added to an int4, -8 to 7, in its nibble."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantisedWeight:
    """A `Weight` in 8 or 4 bits.

    Attributes:
        values: int8 or float8_e4m3fn [..., I]; int4 as uint8 [..., I / 2] in which byte j holds input j in its low
            nibble and input j + I / 2 in its high one, each with `OFFSET` added, so that both are runs of inputs.
        scales: [..., ceil(I / group)], any float dtype; the last group may be shorter.
        zeros: int8 [..., ceil(I / group)], what stands for 0; None where 0 does.
        bias, rotary_dim: as in `DenseWeight`.
        group: inputs that share a scale; None where a row has one scale. Static.
        activations: 'int8' for activations that are rounded to 8 bits, RUN neighbours with a scale, before they are
            multiplied with it; of int8 and int4, whose inputs, groups, and halves in int4, are whole runs. Static.
        dtype: of the activations that it is multiplied with. Static.
    """

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    bias: jax.Array | None = None
    rotary_dim: int | None = dataclasses.field(default=None, metadata=dict(static=True))
    group: int | None = dataclasses.field(default=None, metadata=dict(static=True))
    dtype: np.dtype = dataclasses.field(default=jnp.dtype(jnp.bfloat16), metadata=dict(static=True))
    activations: str | None = dataclasses.field(default=None, metadata=dict(static=True))

    @property
    def format(self) -> str:
        """One of `FORMATS`."""
        return next(name for name, dtype in FORMATS.items() if self.values.dtype == dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        *outputs, stored = self.values.shape
        return (*outputs, stored * (2 if self.values.dtype == jnp.uint8 else 1))

    @property
    def nbytes(self) -> int:
        arrays = (self.values, self.scales, self.zeros)
        return sum(array.size * array.dtype.itemsize for array in arrays if array is not None)


def check(weight: QuantisedWeight, expected: tuple, name: str = "weight") -> None:
    """Raises unless the arrays of `weight` go together, and its logical shape is the expected one."""
    checks.array(f"{name}.values", weight.values)
    if weight.values.dtype not in FORMATS.values():
        raise TypeError(f"{name}.values: expected int8, float8_e4m3fn or uint8 (int4), got {weight.values.dtype}")
    stands_for = jax.ShapeDtypeStruct(weight.shape, weight.dtype)
    checks.shape(name, stands_for, expected)
    check_activations(weight, name)
    groups = groups_of(weight.shape[-1], weight.group)
    checks.shape(f"{name}.scales", weight.scales, (*weight.shape[:-1], groups))
    checks.floating(f"{name}.scales", weight.scales)
    if weight.zeros is not None:
        checks.shape(f"{name}.zeros", weight.zeros, (*weight.shape[:-1], groups))
        checks.dtype_is(f"{name}.zeros", weight.zeros, jnp.int8)


def check_activations(weight: QuantisedWeight, name: str) -> None:
    """Raises unless the activations can be rounded as the weight says."""
    if weight.activations is None:
        return
    checks.one_of(f"{name}.activations", weight.activations, ROUNDED_ACTIVATIONS)
    if weight.format == "fp8":
        raise ValueError(f"{name}.activations: expected None for fp8, got {weight.activations!r}")
    for what, size in (("the group", weight.group or RUN), ("the array's last axis", weight.values.shape[-1])):
        if size % RUN:
            raise ValueError(
                f"{name}.activations: for {weight.activations!r} {what} is a multiple of {RUN}, got {size}"
            )


def groups_of(inputs: int, group: int | None) -> int:
    """How many scales a row has."""
    return 1 if group is None else -(-inputs // group)


def dequantise(weight: QuantisedWeight) -> jax.Array:
    """The numbers that a weight stands for: float32, of its logical shape."""
    values = stored(weight).astype(jnp.float32)
    if weight.zeros is not None:
        values = values - spread(weight.zeros, weight).astype(jnp.float32)
    return values * spread(weight.scales, weight).astype(jnp.float32)


def stored(weight: QuantisedWeight) -> jax.Array:
    """What is stored, one number an input: int8 or float8_e4m3fn, of the logical shape."""
    return unpack_int4(weight.values) if weight.format == "int4" else weight.values


def spread(by_group: jax.Array, weight: QuantisedWeight) -> jax.Array:
    """[..., groups] as [..., I], or as [..., 1] where a row is one group."""
    if weight.group is None:
        return by_group
    return jnp.repeat(by_group, weight.group, axis=-1)[..., : weight.shape[-1]]


def rounded(x: jax.Array) -> jax.Array:
    """Activations [..., I] as 'int8' of `ROUNDED_ACTIVATIONS` has them; I is a multiple of RUN."""
    runs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, RUN)
    most = jnp.maximum(jnp.max(jnp.abs(runs), axis=-1, keepdims=True), 2.0**-100)
    whole = jnp.round(runs * (LARGEST["int8"] / most))
    return (whole * (most * (1 / LARGEST["int8"]))).reshape(x.shape).astype(x.dtype)


def pack_int4(values: jax.Array) -> jax.Array:
    """int8 [..., I] of -8 to 7 as uint8 [..., I / 2], see `QuantisedWeight`; I is even."""
    low, high = jnp.split((values + OFFSET).astype(jnp.uint8), 2, axis=-1)
    return low | (high << 4)


def unpack_int4(values: jax.Array) -> jax.Array:
    """The inverse of `pack_int4`."""
    return jnp.concatenate([values & 0xF, values >> 4], axis=-1).astype(jnp.int8) - OFFSET


def quantise(
    values: jax.Array,
    format: str,
    *,
    group: int | None = None,
    symmetric: bool = True,
    scale_dtype=jnp.float32,
    dtype=jnp.bfloat16,
    bias: jax.Array | None = None,
    rotary_dim: int | None = None,
    activations: str | None = None,
) -> QuantisedWeight:
    """Rounds a weight to the nearest numbers that a format has; the largest of each group keeps its place.

    Args:
        values: [O, I] or [O, 2, I], any float dtype, finite. format: one of `FORMATS`.
        group: inputs that share a scale, or None for all of a row. symmetric: about 0; int8 and int4 may also lie
            between the least and the largest number of each group.
        scale_dtype: of the scales, to which they are rounded first. dtype: of the activations.
        bias, rotary_dim: see `DenseWeight`. activations: see `QuantisedWeight`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """
    checks.one_of("format", format, tuple(FORMATS))
    checks.last_axis("values", values, "I")
    checks.floating("values", values)
    inputs = values.shape[-1]
    if group is not None and checks.whole("group", group, 1) > inputs:
        raise ValueError(f"group: expected at most the {inputs} inputs, got {group}")
    if format == "int4" and inputs % 2:
        raise ValueError(f"values: expected an even number of inputs for int4, got {inputs}")
    if format == "fp8" and not symmetric:
        raise ValueError("symmetric: expected True for fp8")
    size = inputs if group is None else group
    padded = jnp.pad(values.astype(jnp.float32), [(0, 0)] * (values.ndim - 1) + [(0, -inputs % size)])
    blocks = padded.reshape(*values.shape[:-1], -1, size)
    scales, zeros = _fitted(blocks, format, symmetric, scale_dtype)
    whole = blocks / scales.astype(jnp.float32)[..., None]
    if format == "fp8":
        found = jnp.clip(whole, -LARGEST["fp8"], LARGEST["fp8"]).astype(jnp.float8_e4m3fn)
    else:
        least = -LARGEST[format] - 1
        whole = jnp.round(whole) + (0 if zeros is None else zeros.astype(jnp.float32)[..., None])
        found = jnp.clip(whole, least, LARGEST[format]).astype(jnp.int8)
    found = found.reshape(padded.shape)[..., :inputs]
    return QuantisedWeight(
        values=pack_int4(found) if format == "int4" else found, scales=scales, zeros=zeros, bias=bias,
        rotary_dim=rotary_dim, group=group, dtype=jnp.dtype(dtype), activations=activations,
    )  # fmt: skip


def _fitted(blocks, format, symmetric, scale_dtype):
    """Scales [..., groups] and zeros or None, of blocks [..., groups, size]."""
    tiny = float(jnp.finfo(scale_dtype).tiny)
    if symmetric:
        scales = jnp.max(jnp.abs(blocks), axis=-1) / LARGEST[format]
        return jnp.where(scales < tiny, 1.0, scales).astype(scale_dtype), None
    low, high = jnp.minimum(jnp.min(blocks, axis=-1), 0.0), jnp.maximum(jnp.max(blocks, axis=-1), 0.0)
    least, largest = -LARGEST[format] - 1, LARGEST[format]
    scales = (high - low) / (largest - least)
    scales = jnp.where(scales < tiny, 1.0, scales).astype(scale_dtype)
    zeros = jnp.clip(jnp.round(least - low / scales.astype(jnp.float32)), least, largest)
    return scales, zeros.astype(jnp.int8)
