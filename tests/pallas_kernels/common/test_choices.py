"""The choice of implementation and of tiles."""

import dataclasses
import importlib.util
import json
import warnings

import jax
import pytest

import pallas_kernels as pk
from pallas_kernels.attention.tiles import ATTENTION, AttentionShape, AttentionTiles
from pallas_kernels.common import choose_tiles, devices, implementation
from pallas_kernels.common.stream_space import SPLIT_STREAM, STREAM, default
from pallas_kernels.common.stream_tiles import StreamShape, Tiles
from tests.pallas_kernels.lowering import for_gpu

no_gpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="a GPU is here")
SHAPE = StreamShape(rows=1, outputs=100, inputs=200)


@no_gpu
def test_without_a_gpu_xla_runs_and_says_so_once():
    spec = importlib.util.find_spec(implementation.__name__)
    fresh = importlib.util.module_from_spec(spec)  # as in a process in which it has said nothing yet
    spec.loader.exec_module(fresh)
    with pytest.warns(UserWarning, match="no NVIDIA GPU"):
        assert fresh.resolve(None) == "xla"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fresh.resolve(None) == "xla"


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
        assert choose_tiles.current_device() is devices.DEVICES[key]


@pytest.mark.parametrize(
    "kind, key", [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("h200", "h200"), ("cpu", None)]
)
def test_devices_by_kind(kind, key):
    assert devices.find(kind) is (None if key is None else devices.DEVICES[key])


@pytest.fixture
def tuned_file(tmp_path, monkeypatch):
    """Writes the tuned file of ('op', 'h200')."""
    monkeypatch.setattr(choose_tiles.importlib.resources, "files", lambda package: tmp_path)

    def write(text):
        path = tmp_path / "tuned/h200/op.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        choose_tiles.load.cache_clear()

    yield write
    choose_tiles.load.cache_clear()


def resolve(tiles=None, shape=SHAPE):
    with for_gpu("h200"):
        return choose_tiles.resolve("op", tiles, shape, ATTENTION if isinstance(shape, AttentionShape) else STREAM)


def entries(*found):
    """The text of a tuned file of these (shape, tiles)."""
    found = [dict(shape=dataclasses.asdict(shape), tiles=dataclasses.asdict(tiles)) for shape, tiles in found]
    return json.dumps({"entries": found})


def test_tiles_from_the_argument_then_the_file_then_the_heuristic(tuned_file):
    heuristic = default(SHAPE, devices.DEVICES["h200"])
    tuned_file(json.dumps({"entries": []}))
    assert resolve() == heuristic
    winner = Tiles(block_n=8, block_k=64, num_stages=3)
    tuned_file(entries((SHAPE, winner)))
    assert resolve() == winner
    assert resolve(shape=dataclasses.replace(SHAPE, rows=3)) != winner
    assert resolve(Tiles(block_n=1, block_k=32)) == Tiles(block_n=1, block_k=32)


SIXTEEN = StreamShape(rows=16, outputs=4096, inputs=4096)
MMA = Tiles(block_n=32, block_k=64, num_warps=2, num_stages=6, mma=True)


def test_tensor_core_tiles_of_16_rows_serve_2_to_15(tuned_file):
    tuned_file(entries((SIXTEEN, MMA)))
    served = [rows for rows in range(1, 17) if resolve(shape=dataclasses.replace(SIXTEEN, rows=rows)) == MMA]
    assert served == list(range(2, 17))
    others = dict(outputs=2048), dict(inputs=2048), dict(groups=2), dict(dtype="float32"), dict(weight_dtype="float32")
    for change in others:
        shape = dataclasses.replace(SIXTEEN, rows=8, **change)
        assert resolve(shape=shape) == default(shape, devices.DEVICES["h200"]), change


def test_tiles_of_many_rows_serve_what_is_padded_to_them(tuned_file):
    many = dataclasses.replace(SIXTEEN, rows=64)
    tiles = Tiles(block_n=64, block_k=64, num_stages=3, mma=True, block_m=64, splits=2)
    tuned_file(entries((SIXTEEN, MMA), (many, tiles)))

    def served(rows):
        shape = dataclasses.replace(SIXTEEN, rows=rows)
        return choose_tiles.choose("op", shape, devices.DEVICES["h200"], SPLIT_STREAM)

    assert [rows for rows in range(1, 131) if served(rows) == tiles] == list(range(33, 65))


def test_vectors_of_one_row_serve_two(tuned_file):
    one = dataclasses.replace(SIXTEEN, rows=1)
    vectors = Tiles(block_n=8, block_k=64, num_stages=3)
    tuned_file(entries((SIXTEEN, MMA), (one, vectors)))
    assert [resolve(shape=dataclasses.replace(one, rows=rows)) for rows in (1, 2, 3)] == [vectors, vectors, MMA]


@pytest.mark.parametrize("norm", [False, True])
def test_tiles_serve_with_and_without_a_norm(tuned_file, norm):
    """But tensor cores for one row, tuned for a deferred norm, serve no row that needs a norm's launch ahead."""
    one, sixteen = (dataclasses.replace(SIXTEEN, rows=rows, norm=norm) for rows in (1, 16))
    vectors = Tiles(block_n=8, block_k=64, num_stages=3)
    tuned_file(entries((sixteen, MMA), (one, vectors)))
    for rows, expected in ((1, vectors), (8, MMA)):
        assert resolve(shape=dataclasses.replace(one, rows=rows, norm=not norm)) == expected
    tuned_file(entries((one, MMA)))
    other = dataclasses.replace(one, norm=not norm)
    assert resolve(shape=other) == (MMA if norm else default(other, devices.DEVICES["h200"]))


def test_an_entry_of_its_own_comes_before_one_that_stands_in(tuned_file):
    eight, own = dataclasses.replace(SIXTEEN, rows=8), dataclasses.replace(MMA, block_k=128)
    tuned_file(entries((SIXTEEN, MMA), (eight, own)))
    assert resolve(shape=eight) == own
    assert resolve(shape=dataclasses.replace(SIXTEEN, rows=9)) == MMA, "only 16 rows stand in for others"


@pytest.mark.parametrize(
    "tiles",
    [Tiles(block_n=4, block_k=256), dataclasses.replace(MMA, block_n=256, block_k=512)],
    ids=["vectors", "not feasible"],
)
def test_what_cannot_stand_in_leaves_the_heuristic(tuned_file, tiles):
    eight = dataclasses.replace(SIXTEEN, rows=8)
    tuned_file(entries((SIXTEEN, tiles)))
    assert resolve(shape=eight) == default(eight, devices.DEVICES["h200"])


def attends(context, page_size=None, **changes):
    shape = dict(rows=1, heads=32, kv_heads=8, head_dim=64, context=context, page_size=page_size or context)
    return AttentionShape(**(shape | changes))


def keys(block_s, **changes):
    """Tiles that no heuristic chooses."""
    return AttentionTiles(**(dict(block_s=block_s, splits=8, num_warps=2, num_stages=2) | changes))


@pytest.mark.parametrize(
    "context, block_s",
    [(1024, 16), (1152, 16), (1280, 16), (1281, None), (820, 16), (819, None), (8320, 32), (10240, 32), (4096, None)],
)
def test_attention_tiles_of_a_near_capacity(tuned_file, context, block_s):
    tuned_file(entries((attends(1024), keys(16)), (attends(8192), keys(32))))
    expected = ATTENTION.default(attends(context), devices.DEVICES["h200"])
    assert resolve(shape=attends(context)) == (keys(block_s) if block_s else expected)


def test_tiles_without_a_loop_do_not_serve_a_capacity_that_needs_one(tuned_file):
    one_block_each = keys(64, splits=16)
    tuned_file(entries((attends(1024), one_block_each)))
    assert resolve(shape=attends(960)) == one_block_each
    assert resolve(shape=attends(1152)) == ATTENTION.default(attends(1152), devices.DEVICES["h200"])


def test_the_nearest_capacity_wins_and_an_infeasible_one_is_passed_over(tuned_file):
    infeasible = keys(1024, num_stages=6)
    tuned_file(entries((attends(1280), keys(32)), (attends(1024), keys(16)), (attends(1120), infeasible)))
    assert [resolve(shape=attends(context)) for context in (1050, 1250)] == [keys(16), keys(32)]
    assert resolve(shape=attends(1152)) == keys(32)  # 1120 is nearer, but does not run; 1024 is farther than 1280


@pytest.mark.parametrize("changes", [dict(k_dtype="int8"), dict(v_dtype="float8_e4m3fn")], ids=str)
def test_tiles_of_a_cache_serve_no_cache_of_another_dtype(tuned_file, changes):
    plain, own = attends(1024), attends(1024, **changes)
    tuned_file(entries((plain, keys(16))))
    assert resolve(shape=own) == ATTENTION.default(own, devices.DEVICES["h200"])
    tuned_file(entries((plain, keys(16)), (own, keys(32))))
    assert [resolve(shape=shape) for shape in (plain, own, attends(1152, **changes))] == [keys(16), keys(32), keys(32)]


def test_paged_and_contiguous_caches_are_told_apart(tuned_file):
    tuned_file(entries((attends(1024), keys(16)), (attends(1024, 64), keys(32))))
    for shape, tiles in {attends(1152): keys(16), attends(1152, 64): keys(32)}.items():
        assert resolve(shape=shape) == tiles
    for other in (attends(1152, 128), attends(1152, rows=2), attends(1152, dtype="float16"), attends(1152, heads=16)):
        assert resolve(shape=other) == ATTENTION.default(other, devices.DEVICES["h200"]), other


def test_attention_tiles_of_as_many_blocks_of_tokens(tuned_file):
    """Numbers of tokens up to the same power of two; never one for several."""
    tiles = keys(32, block_t=4)
    tuned_file(entries((attends(1024, tokens=8), tiles), (attends(1024), keys(16))))
    served = [tokens for tokens in range(1, 18) if resolve(shape=attends(1152, tokens=tokens)) == tiles]
    assert served == [5, 6, 7, 8]
    assert resolve(shape=attends(1152)) == keys(16)


def test_what_ships_is_what_runs():
    choose_tiles.load.cache_clear()
    count = 0
    for device in devices.DEVICES.values():
        for op in pk.OPS.values():
            for shape, tiles in choose_tiles.load(op.tuned, device.key, op.space):
                assert op.chosen_tiles(shape, device) == tiles, (device.key, op.name, shape)
                count += 1
    assert count, "no tuned tile ships"


def test_an_entry_of_before_a_field_was_there_still_serves(tuned_file):
    """A shape that has gained a field: the entry has its default, and no call loses its tiles."""
    winner = Tiles(block_n=8, block_k=64, num_stages=3)
    for dtype in ("bfloat16", "float32"):
        shape = dataclasses.replace(SHAPE, dtype=dtype, weight_dtype=None)
        fields = dataclasses.asdict(shape)
        del fields["weight_dtype"]
        tuned_file(json.dumps({"entries": [dict(shape=fields, tiles=dataclasses.asdict(winner))]}))
        assert resolve(shape=shape) == winner


@pytest.mark.parametrize("where", ["shape", "tiles"])
def test_an_entry_with_a_field_that_is_not_known_is_named(tuned_file, where):
    entry = dict(shape=dataclasses.asdict(SHAPE), tiles=dict(block_n=8, block_k=64))
    entry[where]["colour"] = 1
    tuned_file(json.dumps({"entries": [entry]}))
    with pytest.raises(ValueError, match=r"^tuned/h200/op.json: .*colour"):
        resolve()


def test_a_broken_tuned_file_is_named(tuned_file):
    tuned_file("{")
    with pytest.raises(ValueError, match=r"^tuned/h200/op.json: "):
        resolve()


def test_without_a_gpu_tiles_are_chosen_as_for_an_h100():
    assert jax.devices()[0].platform != "cpu" or choose_tiles.current_device() is devices.DEVICES["h100"]
