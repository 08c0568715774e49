"""`feasible()` against what XLA's CUDA compiler says, for GPUs that need not be here."""

import dataclasses
import functools
import json
import subprocess
import sys

import pytest

import pallas_kernels as pk
from pallas_kernels.attention import tiles as attention_tiles
from pallas_kernels.common import stream_tiles
from pallas_kernels.common.devices import DEVICES
from tests.pallas_kernels import aot, inputs

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(bool(aot.missing()), reason=aot.missing()),
]

CALLS = [
    ("llama-3.1-8b", "qkv", 8, "bfloat16"),
    ("llama-3.1-8b", "down", 1, "bfloat16"),
    ("llama-3.2-1b", "down", 1, "float32"),
    ("llama-3.2-1b", "out", 8, "float16"),
    ("llama-3.2-1b", "gate_up", 1, "bfloat16"),
    ("llama-3.2-1b", "gate_up", 8, "float32"),
    ("llama-3.2-1b", "deferred_gate_up", 1, "bfloat16"),
    ("llama-3.1-8b", "deferred_qkv", 16, "bfloat16"),
    ("llama-3.1-8b", "head_logits", 1, "bfloat16"),
    ("llama-3.1-8b", "gate_up", 128, "bfloat16"),
    ("llama-3.1-8b", "down", 64, "bfloat16"),
    ("llama-3.2-1b", "qkv", 32, "float32"),
    ("llama-3.1-8b", "attention", 1, "bfloat16"),
    ("llama-3.2-1b", "attention", 8, "float32"),
    ("llama-3.1-8b", "attention", 8, "bfloat16", 4),
    ("llama-3.1-8b", "attention", 1, "bfloat16", 128),
    ("llama-3.2-1b", "attention", 2, "float32", 5),
    ("llama-3.2-1b", "attention", 8, "bfloat16", None, (None, "float8_e4m3fn")),
    ("llama-3.1-8b", "attention", 8, "bfloat16", None, ("int8", "int8")),
    ("llama-3.1-8b", "attention", 1, "bfloat16", 16, ("int8", None)),
]
"""Model, op, rows, dtype, and where there are several, tokens of each row, and dtypes of keys and values."""
EVERY = dict(h200=1, a100=3, b200=3, h100=6)
"""Of so many calls one is compiled for a device: an H100 takes the tiles of an H200."""


@functools.cache
def call_of(model, op, rows, dtype, tokens=None, kv_dtypes=None):
    return inputs.of_model(
        inputs.Shapes(), model, op, rows=rows, dtype=dtype, tokens=tokens, kv_dtypes=kv_dtypes
    )  # fmt: skip


def tiles_of(op):
    """Where `shared_memory_bytes` and `registers_per_thread` of its tiles are."""
    return attention_tiles if op == "attention" else stream_tiles


def chosen(op, shape, device):
    """Why, tile: the default, those next to the limit of shared memory on either side, and one with too few registers.

    The limit is approached through the search space with more stages than are worth trying.
    """
    module, known = tiles_of(op), pk.OPS[op.removeprefix("deferred_")]
    limit = device.shared_memory_bytes

    def fits(tile):
        return module.shared_memory_bytes(tile, shape, device) <= limit

    space = [
        dataclasses.replace(tile, num_stages=stages)
        for tile in known.search_space(shape)
        for stages in (1, 2, 4, 6, 9, 12)
    ]
    space = [tile for tile in dict.fromkeys(space) if module.registers_per_thread(tile, shape) < 128]
    space = [t for t in space if (why := known.feasible(t, shape, device)) or why.reason.startswith("shared memory")]
    need = {tile: module.shared_memory_bytes(tile, shape, device) for tile in space}
    yield "default", known.default_tiles(shape, device)
    for mma in (False, True):
        tiles = [tile for tile in space if getattr(tile, "mma", False) == mma]
        if not tiles:
            continue
        yield "below the limit", max((t for t in tiles if fits(t)), key=need.get)
        above = [t for t in tiles if need[t] > 1.05 * limit]  # the estimate is an upper bound
        if above:
            yield "above the limit", min(above, key=need.get)
    hungry = [dataclasses.replace(tile, num_warps=1) for tile in known.search_space(shape)]
    hungry = [tile for tile in hungry if module.registers_per_thread(tile, shape) > 255 and fits(tile)]
    if hungry:
        yield "registers", min(hungry, key=lambda tile: module.registers_per_thread(tile, shape))


@pytest.mark.parametrize("key", DEVICES)
def test_feasible_agrees_with_the_compiler(key):
    device = DEVICES[key]
    cases = [(c, why, tile) for c in CALLS[:: EVERY[key]] for why, tile in chosen(c[1], call_of(*c).shape, device)]
    request = [
        dict(zip(("model", "op", "rows", "dtype", "tokens", "kv_dtypes"), c), tiles=dataclasses.asdict(tile))
        for c, _, tile in cases
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.pallas_kernels.aot", key],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=aot.ROOT,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    wrong = []
    for (case, why, tile), line in zip(cases, run.stdout.splitlines(), strict=True):
        verdict, op, shape = json.loads(line), case[1], call_of(*case).shape
        module = tiles_of(op)
        feasible = pk.OPS[op.removeprefix("deferred_")].feasible(tile, shape, device)
        need = module.shared_memory_bytes(tile, shape, device)
        if why == "registers":
            agrees = not feasible and "registers" in feasible.reason and verdict["spills"]
        else:
            agrees = bool(feasible) == verdict["fits"] == (need <= device.shared_memory_bytes)
        close = need / 1.1 <= verdict["shared_bytes"] <= need or "limit" not in why
        if not agrees or not close:
            wrong.append(f"{case} {why} {tile}: {feasible}, needs {need}; {verdict}")
    assert not wrong, "\n".join(wrong)
