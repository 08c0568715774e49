"""The models that are measured: configs/models/*.json, in the format of Hugging Face's config.json."""

import functools
from collections.abc import Iterable
from pathlib import Path

from experiments.bench import formats
from experiments.bench.errors import UsageError
from experiments.bench.options import check_name
from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError, LayerConfig, ModelConfig, Rope
from tokenspeed.models.fields import read_json

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "models"
PUBLISHED = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
RAGGED = "ragged"
"""No published model: small enough for interpret mode, of sizes that no tile divides."""
WEIGHTS = ("int8", "int8-a8", "fp8", "int4-g128", "int4-g128-a8", "int4-g128-asym", "int4-g64", "int4-g32")
"""Names of formats that a model's name may end in: then its weights are quantised so."""
QUANTISED = {f"{model}-{weights}": (model, weights) for model in (*PUBLISHED, RAGGED) for weights in WEIGHTS}
MODELS = (*PUBLISHED, RAGGED, *QUANTISED)
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""As options and records have them, and as jax has them."""


@functools.cache
def config_of(model: str) -> ModelConfig:
    """The config of a model by its name."""
    if model in QUANTISED:
        base, weights = QUANTISED[model]
        return formats.quantised(config_of(base), formats.parsed(weights))
    if model == RAGGED:
        return ModelConfig(
            family="llama", vocab_size=500, d_model=160, d_ff=344, num_heads=4, num_kv_heads=2, head_dim=40,
            layers=(LayerConfig(),) * 2, max_positions=4096, eps=1e-5, rope=Rope(theta=10000.0),
        )  # fmt: skip
    return hf_config.from_dict(read_json(FOLDER / f"{model}.json"))


def check_models(field: str, names: Iterable[str], known: Iterable[str] = PUBLISHED) -> None:
    """Raises a UsageError unless each is the name of a model."""
    for name in names:
        check_name(field, name, known)


def path_of(name: str, field: str = "models") -> Path:
    """The config.json of a published model, or the file of that name.

    Raises:
        UsageError: there is neither.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            check_models(field, [name])
    return path


def config_at(name: str) -> tuple[str, ModelConfig]:
    """(short name, config) of a model by its name, or by the path of a config.json."""
    if name in QUANTISED:
        return name, config_of(name)
    path = path_of(name)
    try:
        config = hf_config.from_dict(read_json(path))
    except ConfigError as error:
        raise UsageError(f"models: {name}: {error}") from None
    return path.resolve().parent.name if path.name == "config.json" else path.stem, config
