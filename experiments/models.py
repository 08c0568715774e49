"""The models that are measured: configs/models/*.json, in the format of Hugging Face's config.json."""

import dataclasses
import functools
from pathlib import Path

from tokenspeed.config import ModelConfig, read_json

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "models"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes by the letters of the docs: D, F, N, K, H, V, L."""

    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    layers: int


@functools.cache
def config_of(model: str) -> ModelConfig:
    """The config of a model by its name."""
    return ModelConfig.from_dict(read_json(FOLDER / f"{model}.json"))


def _shape(c: ModelConfig) -> ModelShape:
    return ModelShape(
        d_model=c.d_model, d_ff=c.d_ff, num_heads=c.num_heads, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim,
        vocab=c.vocab_size, layers=c.num_layers,
    )  # fmt: skip


MODELS = {path.stem: _shape(config_of(path.stem)) for path in sorted(FOLDER.glob("*.json"))} | {
    # Small enough for interpret mode; ragged on purpose. No published model.
    "tiny": ModelShape(d_model=160, d_ff=344, num_heads=4, num_kv_heads=2, head_dim=40, vocab=500, layers=2),
}
