"""Memory that is not there is told beforehand, or when it runs out, in one line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import psutil
import pytest
from flax import nnx

from tests.tokenspeed.models.test_hf_config import LLAMA
from tokenspeed.measure.available_memory import NotEnoughMemory, available_bytes, needing
from tokenspeed.models import hf_config
from tokenspeed.models.decoder import Llama
from tokenspeed.weights import checkpoint, entries
from tokenspeed.weights.random import random_model


@pytest.fixture
def eight_gb(monkeypatch):
    """A machine that has 8 GB left."""
    left = psutil.virtual_memory()._replace(available=8 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: left)


def sparse(folder: Path, config: dict) -> Path:
    """A checkpoint of zeros that takes no space on the disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for entry in entries.entries(hf_config.from_dict(config)):
        for part in entry.parts:
            size = 2 * math.prod(part.shape)
            header[part.name] = dict(dtype="BF16", shape=part.shape, data_offsets=[end, end + size])
            end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the host's memory")
def test_what_is_available(eight_gb):
    assert 0 < available_bytes() <= 8 * 10**9


def test_it_is_told_beforehand():
    with pytest.raises(NotEnoughMemory, match=r"^x: takes at least 1,000,000.0 GB of memory, .* GB are available$"):  # noqa: SIM117
        with needing(10**15, "x"):
            pytest.fail("begun all the same")


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_it_is_told_when_it_runs_out(error):
    with pytest.raises(NotEnoughMemory, match=r"^x: takes at least 0.0 GB .*; memory ran out$"), needing(1000, "x"):
        raise error


def test_other_errors_are_not_of_memory():
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^INTERNAL"), needing(1, "x"):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the host's memory")
def test_eight_billion_weights_in_eight_gb(eight_gb, tmp_path):
    folder = sparse(tmp_path / "model", LLAMA)
    with pytest.raises(NotEnoughMemory, match=r"model: loading it in bfloat16: takes at least 17.1 GB .*, 8.0 GB are"):
        checkpoint.load(folder)
    config = hf_config.from_folder(folder)
    with pytest.raises(NotEnoughMemory, match=r"random weights in float32: takes at least 32.1 GB"):
        random_model(config, jnp.float32)
    model = nnx.eval_shape(lambda: Llama(hf_config.from_dict(LLAMA | dict(num_hidden_layers=1)), rngs=nnx.Rngs(0)))
    with pytest.raises(NotEnoughMemory, match=r"RoPE tables of 2147483647 positions: takes at least 1,099.5 GB"):
        model.rope_tables(2**31 - 1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="this system has no limit of the address space")
@pytest.mark.parametrize("gb, message", [(8, "mapping it takes 16.1 GB"), (24, "takes at least 17.1 GB of memory")])
def test_a_process_that_may_take_little(tmp_path, gb, message):
    folder = sparse(tmp_path / "model", LLAMA)
    limited = ["sh", "-c", f'ulimit -v {gb * 10**6}; exec "$@"', "sh"]
    run = subprocess.run(
        [*limited, sys.executable, "-m", "tokenspeed", "generate", "--model", folder, "--prompt-ids", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1, run.stderr
