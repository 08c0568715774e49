"""Weights as the kernels read them: one row of memory per output, so that a program's bytes are contiguous.

A weight is a pytree. `pack_*` makes one from the usual JAX layouts (inputs first), `unpack_*` gives those back.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Weight(Protocol):
    """What is asked of a weight, however it is stored.

    Attributes:
        shape: the logical shape: [O, I], outputs first, or [O, 2, I] where two outputs are needed together (qkv,
            gate_up).
        dtype: of storage.
        nbytes: what one pass over the weight streams from memory.
        bias: [O] or [O, 2], or None.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def bias(self) -> jax.Array | None: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseWeight:
    """An unquantised `Weight`.

    Attributes:
        values: [O, I], or [O, 2, I] where two outputs are needed together; any float dtype.
        bias: [O] or [O, 2], or None.
    """

    values: jax.Array
    bias: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.size * self.values.dtype.itemsize


def pack_linear(kernel: jax.Array, bias: jax.Array | None = None) -> DenseWeight:
    """Packs a weight of `out`, `down` or `head`.

    Args:
        kernel: [I, O], or an output projection's [N, H, D], any float dtype. (A tied embedding table [V, D] needs no
            packing: `DenseWeight(values=table)` shares it.)
        bias: [O] or None.

    Returns:
        A weight of shape [O, I].
    """
    return DenseWeight(values=kernel.reshape(-1, kernel.shape[-1]).T, bias=bias)


def unpack_linear(weight: DenseWeight) -> tuple[jax.Array, jax.Array | None]:
    """The inverse of `pack_linear`: (kernel [I, O], bias [O] or None)."""
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
        ValueError: the two differ in shape, or one bias is missing.
    """
    if gate.shape != up.shape:
        raise ValueError(f"up: expected the shape of gate, {gate.shape}, got {up.shape}")
    bias = _pair_bias(gate_bias, up_bias, "gate_bias", "up_bias")
    return DenseWeight(values=jnp.stack([gate.T, up.T], axis=1), bias=bias)


def unpack_gate_up(weight: DenseWeight) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The inverse of `pack_gate_up`: (gate [D, F], up [D, F], gate_bias, up_bias)."""
    gate_bias, up_bias = (None, None) if weight.bias is None else (weight.bias[:, 0], weight.bias[:, 1])
    return weight.values[:, 0].T, weight.values[:, 1].T, gate_bias, up_bias


def rotary_pairs(head_dim: int, rotary_dim: int | None = None) -> list[tuple[int, int]]:
    """The dimensions of a head that are packed together: those that RoPE rotates together, then the rest in halves.

    The rotation is the split-half one of Hugging Face checkpoints: dimension i goes with i + rotary_dim / 2.
    """
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    if head_dim % 2 or rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim: expected an even number up to an even head_dim, got {rotary_dim} of {head_dim}")
    half, rest = rotary_dim // 2, (head_dim - rotary_dim) // 2
    rotated = [(i, i + half) for i in range(half)]
    return rotated + [(rotary_dim + i, rotary_dim + rest + i) for i in range(rest)]


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
        A weight of shape [(N + 2K) * H / 2, 2, D]: the heads of q, then of k, then of v.

    Raises:
        ValueError: shapes do not go together, a bias is missing, or `rotary_dim` is odd or beyond H.
    """
    if not wq.shape[::2] == wk.shape[::2] == wv.shape[::2] or wk.shape != wv.shape:
        raise ValueError(f"wk, wv: expected two of [{wq.shape[0]}, K, {wq.shape[2]}], got {wk.shape} and {wv.shape}")
    if len({b is None for b in (bq, bk, bv)}) > 1:
        raise ValueError("bq, bk, bv: expected all three or none")
    heads = jnp.concatenate([wq, wk, wv], axis=1)  # [D, N + 2K, H]
    pairs = jnp.array(rotary_pairs(heads.shape[-1], rotary_dim)).reshape(-1)
    values = heads[:, :, pairs].reshape(heads.shape[0], -1, 2).transpose(1, 2, 0)
    bias = None
    if bq is not None and bk is not None and bv is not None:
        bias = jnp.concatenate([bq, bk, bv])[:, pairs].reshape(-1, 2)
    return DenseWeight(values=values, bias=bias)


def unpack_qkv(
    weight: DenseWeight, num_heads: int, num_kv_heads: int, *, rotary_dim: int | None = None
) -> tuple[jax.Array, ...]:
    """The inverse of `pack_qkv`: (wq, wk, wv, bq, bk, bv), the biases None where there are none.

    Raises:
        ValueError: the weight does not hold N + 2K heads.
    """
    total = num_heads + 2 * num_kv_heads
    if 2 * weight.values.shape[0] % total:
        raise ValueError(f"num_heads, num_kv_heads: {weight.values.shape[0]} packed pairs do not hold {total} heads")
    head_dim = 2 * weight.values.shape[0] // total
    place = jnp.argsort(jnp.array(rotary_pairs(head_dim, rotary_dim)).reshape(-1))
    cuts = (num_heads, num_heads + num_kv_heads)
    heads = weight.values.transpose(2, 0, 1).reshape(-1, total, head_dim)[:, :, place]
    biases: tuple = (None, None, None)
    if weight.bias is not None:
        biases = tuple(jnp.split(weight.bias.reshape(total, head_dim)[:, place], cuts))
    return (*jnp.split(heads, cuts, axis=1), *biases)


def _pair_bias(first, second, first_name, second_name):
    if (first is None) != (second is None):
        raise ValueError(f"{first_name}, {second_name}: expected both or neither")
    return None if first is None else jnp.stack([first, second], axis=1)
