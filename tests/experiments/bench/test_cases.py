"""Cases: what records have of them, and that they are made again from that."""

import dataclasses

import pytest

import pallas_kernels as pk
from experiments.bench import cases
from experiments.bench.recorded import OPS


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("page_size", [0, 16])
def test_a_case_is_made_again_from_its_record(op, page_size, make_record):
    case = cases.make(op, "ragged", rows=3, context=80, dtype="f16", page_size=page_size)
    fields = case.fields()
    assert (fields["context"], fields["page_size"]) == ((80, page_size) if op == "attention" else (None, None))
    again = cases.of_record(make_record(**fields))
    assert again.fields() == fields and again.shape == case.shape


def test_pages_change_where_a_context_lies_and_not_what_is_read():
    """Pages of 32 have room for 96 positions, of which 80 count."""
    whole, paged = (cases.make("attention", "ragged", rows=3, context=80, page_size=size) for size in (0, 32))
    assert (whole.shape.context, whole.shape.page_size) == (80, 80)
    assert (paged.shape.context, paged.shape.page_size) == (96, 32)
    assert paged.cost == whole.cost and paged.xla.cost == whole.xla.cost


VECTORS = pk.Tiles(block_n=16, block_k=32)
TENSOR_CORES = dataclasses.replace(VECTORS, mma=True)


@pytest.mark.parametrize(
    "op, model", [("qkv", "llama-3.2-1b-int8-a8"), ("gate_up", "ragged-int4-g32"), ("head", "llama-3.2-1b-int8-a8")]
)
def test_integer_weights_have_fixed_point_on_vectors_and_floats_on_tensor_cores(op, model):
    case = cases.make(op, model, rows=2)
    fixed, floats = (case.call.cut(tiles).arguments for tiles in (VECTORS, TENSOR_CORES))
    bits = 8 if model.endswith("a8") else 16
    assert isinstance(fixed["x"].x, pk.FixedPointRows) and fixed["x"].x.bits == bits
    assert floats["x"].x.dtype == fixed["x"].x.dtype == "bfloat16" and not isinstance(floats["x"].x, pk.FixedPointRows)
    assert fixed["x"].squares == floats["x"].squares
    assert [case.tile_fields(tiles)["fixed_point"] for tiles in (VECTORS, TENSOR_CORES, None)] == [bits, None, None]
    assert case.call.cut(VECTORS).shape == case.call.cut(TENSOR_CORES).shape == case.shape


def test_what_has_no_fixed_point():
    for model, rows in (("ragged-int4-g32", 3), ("ragged", 1), ("ragged-int8", 1)):
        assert cases.make("gate_up", model, rows=rows).fixed_point(VECTORS) is None
        assert "fixed_point" not in cases.make("out", model, rows=rows).call.arguments
    assert cases.make("out", "ragged-int4-g32").fixed_point(VECTORS) is None, "heads of 40 are no runs of 16"
    assert cases.make("down", "ragged-int4-g32").fixed_point(VECTORS) is None, "nor are 344 inputs"


def test_heads_of_whole_runs_come_in_fixed_point():
    attention, out = (cases.make(op, "llama-3.2-1b-int8-a8") for op in ("attention", "out"))
    assert attention.call.arguments["fixed_point"] == out.fixed_point(VECTORS) == 8
    assert out.call.cut(VECTORS).arguments["x"].shape == (1, 2048)


def test_what_leaves_floats_to_a_kernel_that_wants_fixed_point():
    narrow = dataclasses.replace(VECTORS, block_n=8)
    found = {op: cases.make(op, "llama-3.2-1b-int4-g128") for op in ("qkv", "out", "gate_up", "down", "head")}
    for op in ("out", "gate_up", "down"):
        case = found[op]
        assert [case.leaves_floats(tiles) for tiles in (VECTORS, narrow, TENSOR_CORES)] == [False, True, True]
        assert not any(map(case.leaves_floats, case.known.search_space(case.shape)))
        for device in pk.DEVICES.values():
            default = case.known.default_tiles(case.shape, device)
            assert case.known.feasible(default, case.shape, device) and not case.leaves_floats(default)
    assert not found["qkv"].leaves_floats(narrow) and not found["head"].leaves_floats(narrow)
    assert any(tiles.block_n < 16 for tiles in found["head"].known.search_space(found["head"].shape))


def test_a_record_counts_that_had_its_activations_as_the_step_hands_them_on(make_record):
    case = cases.make("gate_up", "llama-3.2-1b-int8-a8")
    known = make_record(**case.tile_fields(VECTORS))
    assert case.counts(known) and not case.counts(known | dict(fixed_point=None))
    assert not case.counts(make_record(**case.tile_fields(dataclasses.replace(VECTORS, block_n=8))))
