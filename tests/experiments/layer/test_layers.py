"""Layers as they are timed: that they compute what XLA computes, and what is said of them."""

import dataclasses
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import record
from experiments.bench.models import config_of
from experiments.layer import __main__ as layer
from experiments.layer import choose_tiles
from experiments.layer.layers import Layers, relative_difference
from tokenspeed.measure.timing import Timing

CONTEXT = 96


@pytest.fixture(scope="module")
def single():
    """A row, whose norms are deferred."""
    return Layers("ragged", dtype="f32", context=CONTEXT, batch=1)


@pytest.fixture(scope="module")
def several():
    """Rows whose norms are whole."""
    return Layers("ragged", dtype="f32", context=CONTEXT, batch=3)


@pytest.mark.slow
def test_layers_are_those_of_xla(single):
    plain = single.result("xla")
    assert plain.shape == (1, config_of("ragged").d_model) and jnp.isfinite(plain).all()
    assert relative_difference(single.result("interpret"), plain) < 1e-5  # float32 sums in another order
    assert not single.state.caches[0].k.is_deleted(), "the state is left as it is"


@pytest.mark.slow
def test_paged_layers_compute_what_contiguous_ones_do(several):
    """The last page is partly filled: of 96 positions in pages of 40."""
    paged = Layers("ragged", dtype="f32", context=CONTEXT, batch=3, page_size=40)
    assert paged.cases["attention"].shape.page_size == 40 and paged.cases["qkv"].page_size == 40
    assert paged.bytes == several.bytes
    for implementation in ("xla", "interpret"):
        found, expected = paged.result(implementation), several.result("xla")
        assert relative_difference(found, expected) < 1e-5, implementation  # float32 sums in another order
    before = np.asarray(paged.state.position)
    assert paged.time(paged.compiled("xla"), samples=1).median_us > 0 and (paged.state.position == before).all()


@pytest.mark.slow
def test_a_time_is_that_of_one_layer_and_leaves_the_state_where_it_was(single):
    """Programs pass the state on: it is at the same place after any number of them, so each times the same."""
    token, position = np.asarray(single.state.token), np.asarray(single.state.position)
    timing = single.time(single.compiled("xla"), samples=1)
    assert timing.samples == 1 and timing.median_us > 0
    assert position.tolist() == [CONTEXT - 1] and (single.state.position == position).all()
    assert (single.state.token == token).all()
    assert single.count == len(single.state.caches) == 2
    assert all(jnp.isfinite(cache.k[:, :, :CONTEXT]).all() for cache in single.state.caches)


@pytest.mark.slow
def test_the_bytes_of_a_layer_are_its_weights_and_its_cache(single):
    c = config_of("ragged")
    weights = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim * c.d_model
    weights += c.num_heads * c.head_dim * c.d_model + 3 * c.d_ff * c.d_model
    cache = 2 * c.num_kv_heads * CONTEXT * c.head_dim
    # All else is small: activations, norms, and the rotation's angles.
    assert 4 * (weights + cache) < single.bytes < 1.02 * 4 * (weights + cache)


@pytest.mark.slow
def test_a_split_reduction_axis_is_a_launch_more(several, device):
    whole = {
        op: dataclasses.replace(tiles, splits=1) if op != "attention" else dataclasses.replace(tiles, splits=4)
        for op, tiles in several.chosen_tiles(device).items()
    }
    split = whole | {op: dataclasses.replace(whole[op], mma=True, splits=2) for op in ("qkv", "down")}
    assert several.launches(whole) == 5 and several.launches(split) == 5 + 2, "attention's own splits are one launch"


@pytest.mark.slow
def test_what_a_time_means(several, device, monkeypatch):
    programs = []

    def compiled(implementation, tiles=None, prefetch=0):
        programs.append((implementation, prefetch))

    monkeypatch.setattr(several, "compiled", compiled)
    monkeypatch.setattr(several, "time", lambda program: Timing(10.0, 9.0, 11.0, 7))
    found = layer.measured(several, "triton", 4096, several.bytes / 5 / 1e3, device)  # whose bytes take 5 us
    assert programs == [("triton", 4096)]
    assert (found["median_us"], found["p10_us"], found["p90_us"], found["samples"]) == (10.0, 9.0, 11.0, 7)
    assert found["percent_of_ceiling"] == 50.0 and found["batch"] == 3 and found["prefetch_bytes"] == 4096
    assert found["page_size"] == 0
    assert set(found["tiles"]) == set(several.cases) and found["launches"] == several.launches(
        several.chosen_tiles(device)
    )
    assert found["beyond_bytes_us_per_launch"] == pytest.approx(5 / found["launches"], abs=1e-3)  # as it is rounded
    plain = layer.measured(several, "xla", 0, 4000.0, device)
    assert plain["tiles"] is plain["launches"] is plain["beyond_bytes_us_per_launch"] is None


@pytest.mark.slow
@pytest.mark.parametrize("command", [layer, choose_tiles], ids=["layer", "choose_tiles"])
def test_a_model_leaves_before_the_next_is_made(command, device, make_record, monkeypatch, tmp_path):
    alive, seen = weakref.WeakSet(), []

    class Made:
        def __init__(self, model, **_):
            seen.append(len(alive))
            alive.add(self)
            self.model, self.cycle = model, self

        def result(self, *_, **__):
            return None

    def measured(layers, implementation, prefetch, *_):
        found = make_record("layer", model=layers.model, implementation=implementation, prefetch_bytes=prefetch)
        return {name: found[name] for name in record.KINDS["layer"].fields if name != "difference_from_xla"}

    monkeypatch.setattr(command, "Layers", Made)
    monkeypatch.setattr(command, "needed_gpu", lambda who: device)
    monkeypatch.setattr(command, "gpu_read_ceiling_gbps", lambda: 4000.0)
    monkeypatch.setattr(layer, "measured", measured)
    monkeypatch.setattr(layer, "relative_difference", lambda x, y: 0.0)
    monkeypatch.setattr(choose_tiles, "choose", lambda *_: None)
    files = [] if command is layer else [str(tmp_path / "sweep.jsonl")]
    (tmp_path / "sweep.jsonl").touch()
    assert command.main([f"--results={tmp_path / 'records.jsonl'}", *files]) == 0
    assert seen == [0, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models=gpt-2"], "models: unknown 'gpt-2'"),
        (["--context=999999"], "context: 999999 is more than the positions of llama-3.1-8b"),
        (["--prefetch_kib="], "prefetch_kib: expected at least one"),
        (["--page_size=1024"], "page_size: expected less than the context, 1024, got 1024"),
        (["--page_size=-1"], "page_size: expected 0 or more, got -1"),
        (["results.jsonl"], "unexpected argument 'results.jsonl'"),
        ([], "the layer benchmark needs an NVIDIA GPU"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert layer.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
