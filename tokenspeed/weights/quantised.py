"""Quantised projections as other tools store them: which tensors one has, and what they hold in the kernels' terms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tokenspeed.models.quantisation import AWQ, FLOATS, FP8, GPTQ, GPTQ_V2, INTEGERS, PACKED, Scheme
from tokenspeed.weights.shards import CheckpointError

FLOAT = ("F16", "BF16", "F32")
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of eight outputs in a word of AWQ's gemm packing: in which nibble each one is, from the lowest."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a projection: what its name ends with, its shape, and dtypes that it may have."""

    suffix: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


def tensors_of(scheme: Scheme, outputs: int, inputs: int) -> list[Tensor]:
    """Those of a projection of that many outputs and inputs; `decoded` takes them in this order."""
    per_word = 4 if scheme.format == "int8" else 8
    words = -(-inputs // per_word)
    groups = scheme.groups(inputs)
    if scheme.layout in (AWQ, GPTQ, GPTQ_V2):
        packed = (inputs, outputs // per_word) if scheme.layout == AWQ else (words, outputs)
        found = [Tensor("qweight", packed, ("I32",)), Tensor("scales", (groups, outputs), FLOAT)]
        if scheme.zeros:
            found.append(Tensor("qzeros", (groups, outputs // per_word), ("I32",)))
        if scheme.layout != AWQ:
            found.append(Tensor("g_idx", (inputs,), ("I32",)))
        return found
    if scheme.outputs == 1:
        scales = (outputs, groups)
    elif scheme.group is None:
        scales = (1,)
    else:
        scales = (-(-outputs // scheme.outputs), groups)
    if scheme.layout == FP8:
        return [
            Tensor("weight", (outputs, inputs), ("F8_E4M3",)),
            Tensor("weight_scale" if scheme.group is None else "weight_scale_inv", scales, FLOAT),
        ]
    name, shape, dtypes = {
        PACKED: ("weight_packed", (outputs, words), ("I32",)),
        INTEGERS: ("weight", (outputs, inputs), ("I8",)),
        FLOATS: ("weight", (outputs, inputs), ("F8_E4M3",)),
    }[scheme.layout]
    found = [Tensor(name, shape, dtypes), Tensor("weight_scale", scales, FLOAT)]
    if scheme.zeros:
        packed = scheme.layout == PACKED and scheme.outputs == 1
        shape = (-(-outputs // per_word), groups) if packed else scales
        found.append(Tensor("weight_zero_point", shape, ("I32",) if packed else ("I8",)))
    return found


UNREAD = ("weight_shape", "input_scale", "input_zero_point", "k_scale", "v_scale", "q_scale", "output_scale", "bias")
"""Ends of names of tensors that a quantised projection may have besides: its shape, which the config says too, what its
activations or the KV cache are to be rounded with, which they are not, and GPTQ's biases where the model has none."""


def check(name: str, scheme: Scheme, outputs: int, inputs: int) -> None:
    """
    Raises:
        CheckpointError: a projection of these sizes has no such storage.
    """
    per_word = 4 if scheme.format == "int8" else 8
    if scheme.group is not None and scheme.group > inputs:
        raise CheckpointError(f"{name}: expected groups of at most its {inputs} inputs, got {scheme.group}")
    if scheme.format == "int4" and inputs % 2:
        raise CheckpointError(f"{name}: expected an even number of inputs in 4 bits, got {inputs}")
    if scheme.layout in (AWQ, GPTQ, GPTQ_V2) and outputs % per_word:
        raise CheckpointError(f"{name}: expected a multiple of {per_word} outputs, got {outputs}")


def check_values(name: str, scheme: Scheme, tensors: list[np.ndarray]) -> None:
    """
    Raises:
        CheckpointError: inputs are in the order of their activations, or zero points are such as GPTQ's first format
            cannot tell apart.
    """
    if scheme.layout not in (GPTQ, GPTQ_V2):
        return
    order = tensors[-1]
    inputs = order.shape[0]
    if not np.array_equal(order, np.arange(inputs) // (inputs if scheme.group is None else scheme.group)):
        raise CheckpointError(f"{name}.g_idx: expected inputs in order; desc_act is not supported")
    if scheme.layout == GPTQ and scheme.format == "int8" and np.any(tensors[2].view(np.uint8) == 255):
        raise CheckpointError(f"{name}.qzeros: expected zero points below 256, which is stored as 255")


def decoded(
    scheme: Scheme, tensors: list[jax.Array], outputs: int, inputs: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What a projection's tensors hold.

    Returns:
        (int8 or float8_e4m3fn [O, I], int4 as int8 of -8 to 7; scales [O, groups]; zero points int8 [O, groups] or
        None).
    """
    bits = 4 if scheme.format == "int4" else 8
    groups = scheme.groups(inputs)
    values, scales, *more = tensors
    if scheme.layout == AWQ:
        order = np.array(AWQ_ORDER)
        values = _signed(_fields(values, bits)[..., order].reshape(inputs, outputs), bits).T
        zeros = None
        if scheme.zeros:
            zeros = _signed(_fields(more[0], bits)[..., order].reshape(-1, outputs), bits).T
        return values, scales.T, zeros
    if scheme.layout in (GPTQ, GPTQ_V2):
        values = _signed(jnp.moveaxis(_fields(values, bits), -1, 1).reshape(-1, outputs)[:inputs], bits).T
        stored = _fields(more[0], bits).reshape(-1, outputs) + (scheme.layout == GPTQ)
        return values, scales.T, _signed(stored, bits).T
    if scheme.outputs != 1:
        times = outputs if scheme.outputs == 0 else scheme.outputs
        scales, *more = (jnp.repeat(x.reshape(-1, groups), times, axis=0)[:outputs] for x in (scales, *more))
    if scheme.layout == PACKED:
        values = _signed(_fields(values, bits).reshape(outputs, -1)[:, :inputs], bits)
        if more and more[0].dtype == jnp.int32:
            more = [_signed(jnp.moveaxis(_fields(more[0], bits), -1, 1).reshape(-1, groups)[:outputs], bits)]
    return values, scales, more[0] if more else None


def _fields(words: jax.Array, bits: int) -> jax.Array:
    """int32 [...] as int32 [..., 32 / bits], unsigned numbers from the lowest bits up."""
    shifts = jnp.arange(0, 32, bits, dtype=jnp.int32)
    return (words[..., None] >> shifts) & ((1 << bits) - 1)


def _signed(values: jax.Array, bits: int) -> jax.Array:
    """Unsigned numbers less half of their range, as int8."""
    return (values - (1 << (bits - 1))).astype(jnp.int8)
