"""What a model is: its sizes and the choices that tell one decoder of the LLaMA kind from another."""

import dataclasses
import functools
from collections.abc import Iterator

from tokenspeed.models.quantisation import HEAD, Quantisation


class ConfigError(ValueError):
    """A model that cannot be run; one line that names the field and what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embeddings (Su et al. 2021), split halves, and how their frequencies are scaled.

    Attributes:
        theta: the base.
        kind: 'default'; 'linear' (positions divided by `factor`, Chen et al. 2023); 'llama3' (long wavelengths divided
            by `factor`, short ones kept, a blend between, Llama 3.1).
        factor, low_freq_factor, high_freq_factor, original_max_positions: of the scaled kinds.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What may differ from layer to layer.

    Attributes:
        window: how many of the last keys count (sliding window), or None for all.
    """

    window: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a decoder.

    Attributes:
        family: an entry of `families.FAMILIES`.
        vocab_size, d_model, d_ff, num_heads, num_kv_heads, head_dim: V, D, F, N, K, H.
        layers: of each layer.
        max_positions: the longest context it was made for.
        eps: of RMSNorm.
        rope: the rotary embedding.
        activation: 'silu' or 'gelu_tanh'.
        tied: whether the embedding table is the head's weight.
        qkv_bias, out_bias, mlp_bias: which projections have one.
        dtype: of the checkpoint's weights.
        quantisation: which projections of the checkpoint are quantised, and how; None where none is.
        bos_id: the token that begins a text, or None. eos_ids: those that end one.
    """

    family: str
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_positions: int
    eps: float
    rope: Rope
    activation: str = "silu"
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "bfloat16"
    quantisation: Quantisation | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_parameters(self) -> int:
        """Of the whole model, tied weights once."""
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = (
            heads * (self.d_model + self.qkv_bias) + (self.num_heads * self.head_dim + self.out_bias) * self.d_model
        )
        mlp = 3 * self.d_model * self.d_ff + self.mlp_bias * (2 * self.d_ff + self.d_model)
        tables = (1 if self.tied else 2) * self.vocab_size * self.d_model
        return self.num_layers * (attention + mlp + 2 * self.d_model) + tables + self.d_model

    def projections(self) -> Iterator[tuple[str, int, int]]:
        """(name in a checkpoint, outputs, inputs) of each projection, the head's too where it is not the table."""
        width, query, key = self.d_model, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        for i in range(self.num_layers):
            attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            yield from ((f"{attention}{x}_proj", n, width) for x, n in (("q", query), ("k", key), ("v", key)))
            yield f"{attention}o_proj", width, query
            yield from ((f"{mlp}{x}_proj", self.d_ff, width) for x in ("gate", "up"))
            yield f"{mlp}down_proj", width, self.d_ff
        if self.has_own_head:
            yield HEAD, self.vocab_size, width

    @property
    def has_own_head(self) -> bool:
        """Whether the head reads a weight of its own, and not the embedding table."""
        return not self.tied or (self.quantisation is not None and self.quantisation.tied_head)

    @functools.cached_property
    def quantised(self) -> tuple[int, int]:
        """(numbers, bytes) of the projections that are quantised; of a copy of a tied table only the bytes."""
        if self.quantisation is None:
            return 0, 0
        found = [(self.quantisation.scheme_of(name), *sizes) for name, *sizes in self.projections()]
        return (
            sum(outputs * inputs for scheme, outputs, inputs in found if scheme)
            - (self.vocab_size * self.d_model if self.tied and self.has_own_head else 0),
            sum(scheme.nbytes(outputs, inputs) for scheme, outputs, inputs in found if scheme),
        )

    def weights_bytes(self, itemsize: int) -> int:
        """Bytes of all weights on the device, `itemsize` bytes a number of those that are not quantised."""
        numbers, stored = self.quantised
        return (self.num_parameters - numbers) * itemsize + stored

    def kv_bytes_per_token(self, itemsize: int, v_itemsize: int | None = None) -> int:
        """Bytes that one position adds to the KV cache of all layers, `itemsize` bytes a number, or `v_itemsize` of
        values where that is given."""
        both = itemsize + (itemsize if v_itemsize is None else v_itemsize)
        return self.num_layers * self.num_kv_heads * self.head_dim * both
