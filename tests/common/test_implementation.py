"""The choice of implementation and of tiles."""

import dataclasses
import json
import warnings

import jax
import pytest

from pallas_kernels.common import devices, implementation, tuned
from pallas_kernels.common.tiles import StreamShape, Tiles, default, feasible
from tests.lowering import for_gpu

no_gpu = pytest.mark.skipif(implementation._has_nvidia_gpu(), reason="a GPU is here")
SHAPE = StreamShape(rows=1, outputs=100, inputs=200)


@no_gpu
def test_without_a_gpu_xla_runs_and_says_so_once():
    implementation._say_once.cache_clear()
    with pytest.warns(UserWarning, match="no NVIDIA GPU"):
        assert implementation.resolve(None) == "xla"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert implementation.resolve(None) == "xla"


@no_gpu
def test_a_named_implementation_never_falls_back():
    with pytest.raises(ValueError, match=r"^implementation: 'triton' needs an NVIDIA GPU"):
        implementation.resolve("triton")
    assert implementation.resolve("interpret") == "interpret"
    assert implementation.resolve("xla") == "xla"


def test_an_unknown_implementation():
    with pytest.raises(
        ValueError, match=r"^implementation: expected None or one of triton, xla, interpret, got 'cuda'"
    ):
        implementation.resolve("cuda")


@pytest.mark.parametrize("key", devices.DEVICES)
def test_a_described_gpu_is_lowered_for(key):
    with for_gpu(key):
        assert implementation.resolve(None) == "triton"
        assert tuned.current_device() is devices.DEVICES[key]


@pytest.mark.parametrize(
    "kind, key", [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("h200", "h200"), ("cpu", None)]
)
def test_devices_by_kind(kind, key):
    assert devices.find(kind) is (None if key is None else devices.DEVICES[key])


def test_an_unknown_device_by_name():
    with pytest.raises(ValueError, match=r"^device: expected one of a100, h100, h200, b200, got 'tpu'"):
        devices.named("tpu")


@pytest.fixture
def tuned_file(tmp_path, monkeypatch):
    """Writes the tuned file of ('op', 'h200')."""
    monkeypatch.setattr(tuned.importlib.resources, "files", lambda package: tmp_path)

    def write(text):
        path = tmp_path / "tuned/h200/op.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        tuned.load.cache_clear()

    yield write
    tuned.load.cache_clear()


def resolve(tiles=None, shape=SHAPE):
    with for_gpu("h200"):
        return tuned.resolve("op", tiles, shape, kind=Tiles, default=default, feasible=feasible)


def test_tiles_from_the_argument_then_the_file_then_the_heuristic(tuned_file):
    heuristic = default(SHAPE, devices.DEVICES["h200"])
    tuned_file(json.dumps({"entries": []}))
    assert resolve() == heuristic
    winner = Tiles(block_n=8, block_k=64, num_stages=3)
    entry = dict(shape=dataclasses.asdict(SHAPE), tiles=dataclasses.asdict(winner))
    tuned_file(json.dumps({"entries": [entry]}))
    assert resolve() == winner
    assert resolve(shape=dataclasses.replace(SHAPE, rows=2)) != winner
    assert resolve(Tiles(block_n=1, block_k=32)) == Tiles(block_n=1, block_k=32)


def test_a_broken_tuned_file_is_named(tuned_file):
    tuned_file("{")
    with pytest.raises(ValueError, match=r"^tuned/h200/op.json: "):
        resolve()


def test_results_do_not_depend_on_the_default_device():
    assert jax.devices()[0].platform != "cpu" or tuned.current_device() is devices.DEFAULT
