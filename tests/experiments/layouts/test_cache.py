"""The kernel that reads a cache lowers for a GPU; it has no interpreted form, so what it reads is seen on one only."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import log
from experiments.layouts import cache
from tests.pallas_kernels import lowering
from tokenspeed.measure.timing import Timing

KV_HEADS, CONTEXT, HEAD_DIM = 2, 1024, 64
SHAPES = {"PKZH": (4, KV_HEADS, 256, HEAD_DIM), "PZKH": (4, 256, KV_HEADS, HEAD_DIM)}


@pytest.mark.parametrize("layout", cache.LAYOUTS)
def test_both_layouts_lower(layout):
    k = v = jax.ShapeDtypeStruct(SHAPES[layout], jnp.bfloat16)
    before = jax.ShapeDtypeStruct((KV_HEADS * cache.SPLITS, HEAD_DIM), jnp.float32)
    with lowering.for_gpu("h200"):
        traced = jax.jit(cache.read, static_argnums=3).trace(before, k, v, layout)
        (result,) = jax.tree.leaves(traced.out_info)
        assert (result.shape, result.dtype) == (before.shape, before.dtype), "one call takes what the last one gave"
        assert f'name = "read_{layout}"' in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_every_page_size_is_timed_in_both_orders(monkeypatch, tmp_path):
    timed = []

    def time_layout(*case):
        timed.append(case)
        return Timing(10.0, 9.0, 11.0, 7), 1000

    monkeypatch.setattr(cache, "needed_gpu", lambda who: None)
    monkeypatch.setattr(cache, "time_layout", time_layout)
    path = tmp_path / "records.jsonl"
    assert cache.main([f"--results={path}"]) == 0
    records = log.read(path)
    assert len(records) == len(timed) == 2 * 2 * 3 * 2
    assert {one["page_size"] for one in records if one["context"] == 1024} == {16, 256, 1024}, "one page, too"
    assert {(one["model"], one["layout"]) for one in records} == {
        (model, layout) for model in ("llama-3.1-8b", "llama-3.2-1b") for layout in cache.LAYOUTS
    }
    assert all(one["kind"] == "cache_layout" and one["median_us"] == 10.0 for one in records)


def test_it_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert cache.main([]) == 2
    err = capsys.readouterr().err
    assert err == "error: the comparison of cache layouts needs an NVIDIA GPU, and there is none here\n"
