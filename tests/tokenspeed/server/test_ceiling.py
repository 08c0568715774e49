"""The read ceiling: who says it."""

import jax
import pytest

from tokenspeed.server.ceiling import Ceiling, ceiling

READ = "tokenspeed.server.ceiling.read_ceiling_gbps"


def test_what_is_given_is_not_measured(monkeypatch):
    monkeypatch.setattr(READ, lambda: pytest.fail("measured"))
    assert ceiling(3350.0) == Ceiling(3.35e12, "given") and ceiling(0) is None


def test_what_is_not_is(monkeypatch):
    monkeypatch.setattr(READ, lambda: 10.5)
    assert ceiling(None) == Ceiling(1.05e10, "measured")


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 4 GiB")])
@pytest.mark.parametrize("kind, expected", [("NVIDIA H200", Ceiling(4.8e12, "datasheet")), ("another", None)])
def test_where_memory_does_not_suffice_a_datasheet_does(error, kind, expected, monkeypatch):
    def fails():
        raise error

    class Device:
        device_kind, platform = kind, "gpu"

    monkeypatch.setattr(READ, fails)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(jax, "devices", lambda *_: [Device()])
    assert ceiling(None) == expected
