"""Weights as the kernels read them: one row of memory per output, so that a program's bytes are contiguous.

A weight is a pytree. `pack_*` makes one from the usual JAX layouts (inputs first), `unpack_*` gives those back.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import checks, quantised
from pallas_kernels.common.quantised import QuantisedWeight


class Weight(Protocol):
    """What is asked of a weight, however it is stored.

    Attributes:
        shape: the logical shape: [O, I], outputs first, or [O, 2, I] where two outputs are needed together (qkv,
            gate_up).
        values: the array that is streamed, outputs first.
        dtype: of the activations that it is multiplied with, and of an unquantised one's storage.
        nbytes: what one pass over the weight streams from memory.
        bias: [O] or [O, 2], or None.
        rotary_dim: of a weight of qkv, see `DenseWeight`.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def values(self) -> jax.Array: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def bias(self) -> jax.Array | None: ...

    @property
    def rotary_dim(self) -> int | None: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseWeight:
    """An unquantised `Weight`.

    Attributes:
        values: [O, I], or [O, 2, I] where two outputs are needed together; any float dtype.
        bias: [O] or [O, 2], or None.
        rotary_dim: how many dimensions of a head `pack_qkv` has put in the order of their rotation; None for all of
            them, and for weights of other ops. Static.
    """

    values: jax.Array
    bias: jax.Array | None = None
    rotary_dim: int | None = dataclasses.field(default=None, metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.size * self.values.dtype.itemsize


def check(weight: Weight, expected: tuple, packed_by: str, name: str = "weight") -> None:
    """Raises unless `weight` is a packed one, its values of the expected shape and its bias one number an output."""
    if isinstance(weight, QuantisedWeight):
        quantised.check(weight, expected, name)
        _check_bias(f"{name}.bias", weight.bias, weight.shape[:-1])
    else:
        check_dense(weight, expected, packed_by, name)


def check_dense(weight: Weight, expected: tuple, packed_by: str, name: str = "weight") -> None:
    """As `check`, of a weight that is not quantised."""
    checks.instance(name, weight, DenseWeight, f" from `{packed_by}`")
    checks.shape(name, weight.values, expected, f" from `{packed_by}`")
    checks.floating(name, weight.values)
    _check_bias(f"{name}.bias", weight.bias, weight.shape[:-1])


def _check_bias(name: str, bias: jax.Array | None, expected: tuple) -> None:
    if bias is not None:
        checks.shape(name, bias, expected)
        checks.floating(name, bias)


def pack_linear(kernel: jax.Array, bias: jax.Array | None = None) -> DenseWeight:
    """Packs a weight of `out`, `down` or `head`.

    Args:
        kernel: [I, O], or an output projection's [N, H, D], any float dtype. (A tied embedding table [V, D] needs no
            packing: `DenseWeight(values=table)` shares it.)
        bias: [O] or None.

    Returns:
        A weight of shape [O, I].

    Raises:
        ValueError, TypeError: an argument's shape or dtype is wrong; the message names it.
    """
    checks.array("kernel", kernel)
    checks.shape("kernel", kernel, ("I", "O") if len(kernel.shape) != 3 else ("N", "H", "D"), " or [N, H, D]")
    checks.floating("kernel", kernel)
    _check_bias("bias", bias, kernel.shape[-1:])
    return DenseWeight(values=kernel.reshape(-1, kernel.shape[-1]).T, bias=bias)


def unpack_linear(weight: DenseWeight) -> tuple[jax.Array, jax.Array | None]:
    """The inverse of `pack_linear`: (kernel [I, O], bias [O] or None).

    Raises:
        ValueError, TypeError: the weight is not of that shape, or not packed.
    """
    check_dense(weight, ("O", "I"), "pack_linear")
    return weight.values.T, weight.bias


def pack_gate_up(
    gate: jax.Array, up: jax.Array, gate_bias: jax.Array | None = None, up_bias: jax.Array | None = None
) -> DenseWeight:
    """Packs the gate and up projections side by side.

    Args:
        gate, up: [D, F], any float dtype. gate_bias, up_bias: [F], both or neither.

    Returns:
        A weight of shape [F, 2, D].

    Raises:
        ValueError, TypeError: an argument's shape or dtype is wrong, the two differ, or one bias is missing.
    """
    checks.shape("gate", gate, ("D", "F"))
    checks.floating("gate", gate)
    checks.shape("up", up, tuple(gate.shape), ", that of gate")
    checks.same_dtype("up", up, "gate", gate)
    if (gate_bias is None) != (up_bias is None):
        raise ValueError("gate_bias, up_bias: expected both or neither")
    bias = None
    if gate_bias is not None and up_bias is not None:
        _check_bias("gate_bias", gate_bias, gate.shape[1:])
        _check_bias("up_bias", up_bias, gate.shape[1:])
        checks.same_dtype("up_bias", up_bias, "gate_bias", gate_bias)
        bias = jnp.stack([gate_bias, up_bias], axis=1)
    return DenseWeight(values=jnp.stack([gate.T, up.T], axis=1), bias=bias)


def unpack_gate_up(weight: DenseWeight) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The inverse of `pack_gate_up`: (gate [D, F], up [D, F], gate_bias, up_bias).

    Raises:
        ValueError, TypeError: the weight is not of that shape, or not packed.
    """
    check_dense(weight, ("F", 2, "D"), "pack_gate_up")
    gate_bias, up_bias = (None, None) if weight.bias is None else (weight.bias[:, 0], weight.bias[:, 1])
    return weight.values[:, 0].T, weight.values[:, 1].T, gate_bias, up_bias


def rotary_pairs(head_dim: int, rotary_dim: int | None = None) -> list[tuple[int, int]]:
    """The dimensions of a head that are packed together: those that RoPE rotates together, then the rest in halves.

    The rotation is the split-half one of Hugging Face checkpoints: dimension i goes with i + rotary_dim / 2.
    """
    rotary_dim = checked_rotary_dim(head_dim, rotary_dim)
    half, rest = rotary_dim // 2, (head_dim - rotary_dim) // 2
    rotated = [(i, i + half) for i in range(half)]
    return rotated + [(rotary_dim + i, rotary_dim + rest + i) for i in range(rest)]


def checked_rotary_dim(head_dim: int, rotary_dim: int | None) -> int:
    """How many of H dimensions rotate, None being all of them; raises unless both are even."""
    rotary_dim = head_dim if rotary_dim is None else checks.whole("rotary_dim", rotary_dim, 0)
    if head_dim % 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(f"rotary_dim: expected an even number up to an even head_dim, got {rotary_dim} of {head_dim}")
    return rotary_dim


def pack_qkv(
    wq: jax.Array,
    wk: jax.Array,
    wv: jax.Array,
    bq: jax.Array | None = None,
    bk: jax.Array | None = None,
    bv: jax.Array | None = None,
    *,
    rotary_dim: int | None = None,
) -> DenseWeight:
    """Packs the query, key and value projections, the two dimensions of a head that RoPE rotates together side by side.

    Args:
        wq: [D, N, H]; wk, wv: [D, K, H]; any float dtype.
        bq: [N, H]; bk, bv: [K, H]; all or none.
        rotary_dim: how many of the H dimensions RoPE rotates; None for all.

    Returns:
        A weight of shape [(N + 2K) * H / 2, 2, D]: the heads of q, then of k, then of v. It knows its `rotary_dim`.

    Raises:
        ValueError, TypeError: an argument's shape or dtype is wrong or does not go with the others', a bias is missing,
            or `rotary_dim` is odd or beyond H; the message names it.
    """
    checks.shape("wq", wq, ("D", "N", "H"))
    checks.floating("wq", wq)
    width, num_heads, head_dim = wq.shape
    checks.shape("wk", wk, (width, "K", head_dim))
    num_kv_heads = wk.shape[1]
    checks.shape("wv", wv, (width, num_kv_heads, head_dim), ", that of wk")
    if num_heads % num_kv_heads:
        raise ValueError(f"wk: expected a number of heads that divides the {num_heads} of wq, got {num_kv_heads}")
    for name, kernel in (("wk", wk), ("wv", wv)):
        checks.same_dtype(name, kernel, "wq", wq)
    if len({b is None for b in (bq, bk, bv)}) > 1:
        raise ValueError("bq, bk, bv: expected all three or none")
    for name, one, count in (("bq", bq, num_heads), ("bk", bk, num_kv_heads), ("bv", bv, num_kv_heads)):
        _check_bias(name, one, (count, head_dim))
        if one is not None:
            checks.same_dtype(name, one, "bq", bq)
    pairs_of_dimensions = rotary_pairs(head_dim, rotary_dim)
    heads = jnp.concatenate([wq, wk, wv], axis=1)  # [D, N + 2K, H]
    pairs = jnp.array(pairs_of_dimensions).reshape(-1)
    values = heads[:, :, pairs].reshape(width, -1, 2).transpose(1, 2, 0)
    bias = None
    if bq is not None and bk is not None and bv is not None:
        bias = jnp.concatenate([bq, bk, bv])[:, pairs].reshape(-1, 2)
    return DenseWeight(values=values, bias=bias, rotary_dim=None if rotary_dim == head_dim else rotary_dim)


def unpacked_order(head_dim: int, rotary_dim: int | None) -> jax.Array:
    """Of each dimension of a head, its place in a packed one: int32 [H]."""
    return jnp.argsort(jnp.array(rotary_pairs(head_dim, rotary_dim)).reshape(-1))


def unpack_qkv(weight: DenseWeight, num_heads: int, num_kv_heads: int) -> tuple[jax.Array, ...]:
    """The inverse of `pack_qkv`: (wq, wk, wv, bq, bk, bv), the biases None where there are none.

    Raises:
        ValueError, TypeError: the weight is not packed, or does not hold N + 2K heads.
    """
    check_dense(weight, ("(N + 2K) * H / 2", 2, "D"), "pack_qkv")
    total = checks.whole("num_heads", num_heads, 1) + 2 * checks.whole("num_kv_heads", num_kv_heads, 1)
    if num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads: expected a divisor of the {num_heads} query heads, got {num_kv_heads}")
    if 2 * weight.values.shape[0] % total:
        raise ValueError(f"num_heads, num_kv_heads: {weight.values.shape[0]} packed pairs do not hold {total} heads")
    head_dim = 2 * weight.values.shape[0] // total
    place = unpacked_order(head_dim, weight.rotary_dim)
    cuts = (num_heads, num_heads + num_kv_heads)
    heads = weight.values.transpose(2, 0, 1).reshape(-1, total, head_dim)[:, :, place]
    biases: tuple = (None, None, None)
    if weight.bias is not None:
        biases = tuple(jnp.split(weight.bias.reshape(total, head_dim)[:, place], cuts))
    return (*jnp.split(heads, cuts, axis=1), *biases)
