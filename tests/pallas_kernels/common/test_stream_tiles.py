"""The heuristic and the search space of tiles for tensor cores."""

import dataclasses

import pytest

import pallas_kernels as pk
from pallas_kernels.common.checks import DTYPES
from pallas_kernels.common.devices import DEVICES
from pallas_kernels.common.stream_space import default
from pallas_kernels.common.stream_tiles import RESERVED_BYTES, StreamShape, Tiles, feasible, shared_memory_bytes
from tests.pallas_kernels import inputs

OPS = ("qkv", "out", "gate_up", "down", "head")


def shape_of(model, op, rows=16, dtype="bfloat16") -> StreamShape:
    return inputs.of_model(inputs.Shapes(), model, op, rows=rows, dtype=dtype).shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", DEVICES)
def test_the_heuristic_fits_and_leaves_room_for_a_second_program(key, dtype):
    device = DEVICES[key]
    for model in inputs.MODELS:
        for op in OPS:
            for rows in (3, 4, 16):
                shape = shape_of(model, op, rows, dtype)
                tiles = default(shape, device)
                assert tiles.mma and feasible(tiles, shape, device), (shape, tiles)
                programs = min(2, -(-shape.outputs // (tiles.block_n * device.num_sms)))
                need = programs * (shared_memory_bytes(tiles, shape, device) + RESERVED_BYTES)
                assert need <= device.shared_memory_bytes + RESERVED_BYTES, (shape, tiles)


@pytest.mark.parametrize(
    "model, op, weight_rows",
    [
        ("llama-3.1-8b", "head", 64),
        ("llama-3.1-8b", "gate_up", 128),
        ("llama-3.2-1b", "gate_up", 64),
        ("llama-3.1-8b", "qkv", 32),
        ("llama-3.1-8b", "down", 16),
    ],
)
def test_programs_are_wide_where_many_are_left(model, op, weight_rows):
    shape = shape_of(model, op)
    assert shape.groups * default(shape, DEVICES["h200"]).block_n == weight_rows


@pytest.mark.parametrize(
    "rows, outputs, inputs_, groups",
    [
        (3, 1, 1, 1),
        (16, 37, 100, 2),
        (8, 10**6, 17, 1),
        (2, 37, 100, 2),
        (2, 128256, 4096, 1),
        (17, 1, 1, 2),
        (256, 99, 70, 1),
    ],
)
def test_the_heuristic_of_odd_shapes(rows, outputs, inputs_, groups):
    for dtype in DTYPES:
        shape = StreamShape(rows=rows, outputs=outputs, inputs=inputs_, groups=groups, dtype=dtype, norm=True)
        for device in DEVICES.values():
            assert feasible(default(shape, device), shape, device)


def test_the_forms_of_many_rows_are_tried_for_three_to_sixteen():
    for op in OPS:
        for rows in (1, 2, 3, 16):
            found = [tiles for tiles in pk.OPS[op].search_space(shape_of("llama-3.1-8b", op, rows)) if tiles.swap_ab]
            assert bool(found) == (rows > 2) and len(found) <= 16, (op, rows)


@pytest.mark.parametrize("rows", [17, 32, 64, 128, 256])
def test_the_heuristic_of_many_rows_is_the_first_that_runs(rows):
    for op in OPS:
        shape, known = shape_of("llama-3.1-8b", op, rows), pk.OPS[op]
        for key in ("h100", "h200"):  # whose products are those that the search space is in the order of
            runs = [tiles for tiles in known.search_space(shape) if known.feasible(tiles, shape, DEVICES[key])]
            assert known.default_tiles(shape, DEVICES[key]) == runs[0]


def test_only_ops_with_a_second_launch_split():
    device = DEVICES["h200"]
    for op in OPS:
        shape, known = shape_of("llama-3.1-8b", op, 64), pk.OPS[op]
        splits = {tiles.splits for tiles in known.search_space(shape)}
        assert splits == ({1, 2, 4, 8} if op in ("qkv", "out", "down") else {1})
        split = Tiles(block_n=64, block_k=64, mma=True, block_m=64, splits=2)
        assert bool(known.feasible(split, shape, device)) == (op in ("qkv", "out", "down"))


@pytest.mark.parametrize(
    "change, field",
    [
        (dict(splits=3), "splits"),
        (dict(splits=64), "splits"),
        (dict(block_m=8), "mma"),
        (dict(mma=False), "block_m"),
        (dict(mma=False, block_m=16, swap_ab=True), "swap_ab"),
        (dict(mma=False, block_m=16, splits=2), "splits"),
        (dict(mma=False, block_m=16), "mma"),
        (dict(swap_ab=1), "swap_ab"),
    ],
)
def test_tiles_of_many_rows_that_are_refused(change, field):
    tiles = dataclasses.replace(Tiles(block_n=64, block_k=64, mma=True, block_m=64), **change)
    shape = StreamShape(rows=64, outputs=2048, inputs=2048)
    verdict = feasible(tiles, shape, DEVICES["h200"])
    assert not verdict and verdict.reason.startswith(field)
