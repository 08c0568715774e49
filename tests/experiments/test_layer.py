"""The layers of `experiments.layer` compute what XLA computes, norms in halves or whole."""

import pytest

from experiments import layer


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype, limit", [("f32", 1e-5), ("bf16", 1e-2)])  # orders of sums; a few roundings of 2^-9
def test_layers_are_those_of_xla(dtype, limit, rows):
    layers = layer.Layers("tiny", dtype, 96, rows)
    assert layer.relative_difference(layers.result("interpret"), layers.result("xla")) < limit
