"""The device that an experiment runs on, and errors in one line."""

import types

import jax
import pytest

import pallas_kernels as pk
from experiments.bench import device as devices
from experiments.bench.errors import UsageError


@pytest.fixture
def gpu(monkeypatch):
    """Has jax run on a GPU of that name."""

    def be(kind):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])

    return be


def test_a_gpu_that_is_known(gpu):
    gpu("NVIDIA H200")
    assert devices.gpu_here() == pk.DEVICES["h200"] == devices.needed_gpu("a test")
    assert devices.in_path("out/sweep-{device}.jsonl") == "out/sweep-h200.jsonl"


def test_a_gpu_that_is_not_known(gpu):
    gpu("NVIDIA T4")
    for ask in (devices.gpu_here, lambda: devices.needed_gpu("a test"), lambda: devices.in_path("records.jsonl")):
        with pytest.raises(UsageError, match="device: unknown GPU 'NVIDIA T4'; expected one of a100, h100"):
            ask()


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert devices.gpu_here() is None
    assert devices.in_path("out/{device}-{device}.jsonl") == "out/cpu-cpu.jsonl"
    with pytest.raises(UsageError, match="a test needs an NVIDIA GPU, and there is none here"):
        devices.needed_gpu("a test")


def test_a_device_that_answers_and_one_that_does_not(monkeypatch):
    devices.probe_device()

    def fail(_):
        raise RuntimeError("illegal address\nand more lines")

    monkeypatch.setattr(jax, "block_until_ready", fail)
    with pytest.raises(devices.DeviceLost, match=r"^RuntimeError: illegal address$"):
        devices.probe_device()


@pytest.mark.parametrize(
    "error, reason",
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("\n  first  \n"), "ValueError: first"),
        (ValueError(), "ValueError: "),
        (ValueError("x" * 500), "ValueError: " + "x" * 188),
    ],
)
def test_reasons_are_a_line_of_at_most_200_characters(error, reason):
    assert devices.reason_of(error) == reason
