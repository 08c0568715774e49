"""Models by name, and those whose weights are quantised."""

import jax
import pytest

from experiments.bench import formats
from experiments.bench.errors import UsageError
from experiments.bench.models import config_at, config_of
from tokenspeed.models.memory import decode_bytes
from tokenspeed.weights.random import described_model, random_model


@pytest.mark.parametrize(
    "name, gigabytes",
    [
        # 8.03 B numbers, of which the table's 0.525 B are not read; 0.13 GB of cache; scales of 2 bytes.
        ("llama-3.1-8b", 15.14), ("llama-3.1-8b-int8", 7.64), ("llama-3.1-8b-fp8", 7.64),
        ("llama-3.1-8b-int4-g128", 4.26),
        # Tied: the head reads an int8 copy of the table.
        ("llama-3.2-1b", 2.51), ("llama-3.2-1b-int8", 1.27), ("llama-3.2-1b-int4-g128", 0.798),
        # 70.55 B, of which the table's 1.05 B are not read; 0.34 GB of cache.
        ("llama-3.1-70b-int4-g128", 36.7), ("llama-3.1-70b-int8", 69.9), ("llama-3.1-70b-fp8", 69.9),
    ],
)  # fmt: skip
def test_what_a_step_reads(name, gigabytes):
    assert config_at(name) == (name, config_of(name))
    assert decode_bytes(config_of(name), dtype="bfloat16", context=1024) / 1e9 == pytest.approx(gigabytes, rel=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ragged-int4-g32", "ragged-int8"])
def test_bytes_are_those_of_the_model(name):
    config = config_of(name)
    model, described = random_model(config, "float32"), described_model(config, "float32")
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(model)) == config.weights_bytes(4)
    for one, other in zip(jax.tree.leaves(model), jax.tree.leaves(described), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert model.head_weight.shape == (config.vocab_size, config.d_model)


def test_70b_is_never_whole_in_16_bits():
    """What is drawn at a time, in float32, and all that is kept leave room on a card of 139 GiB."""
    config = config_of("llama-3.1-70b-int4-g128")
    leaves = jax.tree.leaves(described_model(config, "bfloat16"))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == config.weights_bytes(2) < 39e9
    assert max(leaf.size for leaf in leaves) * 4 < 5e9


@pytest.mark.parametrize(
    "name", ["int8", "fp8", "int4-g128", "int4-g32-asym", "int8-g64-asym", "int4", "int4-g32-asym-a8"]
)
def test_names_of_formats(name):
    assert formats.parsed(name).name == name


@pytest.mark.parametrize(
    "name", ["int3", "int4-g0", "int4-128", "int4-g", "fp8-asym", "asym", "int4-g128-sym", "fp8-a8", ""]
)
def test_formats_that_there_are_not(name):
    with pytest.raises(UsageError, match=r"^formats: "):
        formats.parsed(name)
