"""What the tests of experiments share: options of a small sweep, valid records, and a machine whose times are given."""

import dataclasses
import itertools

import pytest

import pallas_kernels as pk
from experiments.bench import options as command_line
from experiments.bench import record
from experiments.bench.tile_bench import Machine
from experiments.sweep.options import Options
from tests.compiling import programs_run_often, without_optimisations
from tokenspeed.measure.timing import Timing

__all__ = ["programs_run_often", "without_optimisations"]


@pytest.fixture
def device() -> pk.Device:
    return pk.DEVICES["h200"]


@pytest.fixture
def make_options(tmp_path):
    """Options of configs/tiles.py made small, with overrides."""

    def make(**overrides) -> Options:
        small = dict(
            ops=("out",),
            models=("ragged",),
            contexts=(80,),
            calls=2,
            passes=1,
            max_tiles=4,
            compile_workers=2,
            interpret_rows=(1,),
            interpret_tiles=2,
            lower_tiles=2,
            cpu_models=("ragged",),
            results=str(tmp_path / "records.jsonl"),
            plots="",
        )
        whole = command_line.parse([], Options, "tiles.py")
        return dataclasses.replace(whole, **(small | overrides))

    return make


@pytest.fixture
def make_machine():
    """A machine whose kernels are XLA's and whose times are given; the last goes on for ever."""

    def make(times=(10.0,), implementation="xla", before=lambda number: None) -> Machine:
        given = itertools.chain(times, itertools.repeat(times[-1]))
        number = itertools.count()

        def time_calls(run, *, calls, samples, sample_seconds):
            before(next(number))
            run()
            us = next(given)
            return Timing(us, 0.9 * us, 1.1 * us, samples)

        return Machine(implementation=implementation, ceiling_gbps=lambda: 4000.0, time_calls=time_calls)

    return make


VALUES = dict(
    op="out", model="ragged", rows=1, batch=1, context=None, dtype="bf16",
    tiles=dataclasses.asdict(pk.Tiles(block_n=4, block_k=256, num_warps=4, num_stages=1, mma=False)),
    status="ok", error=0.001, error_xla=0.001, median_us=10.0, p10_us=9.5, p90_us=10.5, samples=15, calls=64,
    bytes=10_000_000, achieved_gbps=1000.0, ceiling_gbps=4000.0, percent_of_ceiling=25.0, xla_us=20.0,
    compile_s=1.0, device="NVIDIA H200", driver="580.1", clocks=None, jax="0.11.2", sources="0123456789ab",
    commit="c" * 40, dirty=False, command="python -m experiments.sweep", date="2026-01-02T03:04:05Z",
)  # fmt: skip
STEP = dict(
    implementation="triton", context=1024, page_size=0, kv_dtype="auto", ms_per_token=2.0, ms_p5=1.9, ms_p95=2.1,
    ms_min=1.9, ms_max=2.1,
    floor_ms=1.5, tokens_per_s=500.0, ttft_ms=10.0, steps=127, engine="torch", engine_version="2.0", how="compiled",
    ablation="", tried=False, kernel="out", read_bytes=100, written_bytes=10, step_bytes=100, step_read_bytes=110,
)  # fmt: skip
SERVED = dict(
    implementation="triton", prefill_backend="cudnn", max_batch=64, max_context=2149, max_batched_tokens=0,
    kv_pages=1000, programs=40, ready_s=60.0, compiled_after_ready=0, preemptions=0,
)  # fmt: skip
LOAD = dict(
    concurrency=8, input_tokens=1024, output_tokens=128, requests=16, seconds=2.0, output_tokens_per_s=1024.0,
    requests_per_s=8.0, ttft_ms_p50=90.0, ttft_ms_p99=200.0, itl_ms_p50=5.0, itl_ms_p99=25.5, whole_ms_p50=800.0,
)  # fmt: skip
OF_KIND = dict(
    tile_in_layer=dict(
        layer_us=100.0, layer_p10_us=99.0, layer_p90_us=101.0, layer_tiles={}, layer_context=1024, incumbent=True,
        chosen=True,
    ),
    layer=dict(tiles=dict(out=VALUES["tiles"]), prefetch_bytes=0),
    feasible_tiles=dict(tiles=None, feasible=dict(h200=dict(feasible=2, of=3, reasons=dict(registers=1)))),
    prefill=dict(
        prefill_backend="cudnn", tokens=1024, start=0, ms=30.0, ms_p5=29.0, ms_p95=31.0, flop=10**13, tflops=333.3,
        floor_ms=16.0,
    ),
    accuracy=dict(
        implementation="xla", format="int4-g32", head="none", text="stories", sequences=8, length=512, positions=4096,
        kl_mean=1e-3, kl_p99=1e-2, top1=0.95, top1_float64=0.95, near_ties=0.01, perplexity=2.0,
        perplexity_reference=1.9, layer_errors=[0.1, 0.12], bits_per_weight=4.5, model_bytes=10**6,
        reference_bytes=2 * 10**6,
    ),
    soak=dict(batch_invariant=False, seed=0, requests=5, tokens_checked=100, same_bits=5),
    server_soak=dict(
        clients=20, load_seconds=3.0, batch=4, seed=0, requests=100, finished=80, same_as_alone=80, one_token=200,
        ready_s=20.0,
    ),
    peer_load=LOAD | dict(implementation="torch", engine="torch", engine_version="2.0", how="compiled"),
    serve=dict(
        endpoint="ours", mix="chat", arrivals="poisson", rate=4.0, seed=0, input_unit="tokens", spread=0.6,
        chat_input=1024, chat_output=128, long_input=30000, long_output=16, long_every_s=4.0, requests=60, errors=0,
        rejected=0, errors_by_kind={}, ttft_ms_p50=10.0, ttft_ms_p95=20.0, ttft_ms_p99=30.0, tpot_ms_p50=4.0,
        tpot_ms_p99=4.5, itl_ms_p99=5.0, request_tokens_per_s_p50=250.0, output_tokens_per_s=500.0, goodput_per_s=3.5,
        tokens_at_once_mean=1.0, slo_ttft_ms=500.0, slo_tpot_ms=50.0,
    ),
    throughput=SERVED
    | LOAD
    | dict(
        steps=300, host_ms_per_step=0.5, wait_ms_per_step=4.0, prefix_hit_tokens=0, pool_occupancy=0.125,
        tokens_checked=2048, tokens_alike=128,
    ),
    long_prompt=SERVED
    | dict(
        long_tokens=30000, background=8, input_tokens=1024, short_tokens=100, repeats=5, itl_before_ms_p50=5.0,
        itl_during_ms_p99=90.0, long_ttft_ms=1500.0, short_ttft_ms=100.0,
    ),
    shared_prefix=SERVED
    | dict(
        prefix_tokens=2048, suffix_tokens=100, repeats=5, first_ttft_ms=80.0, second_ttft_ms=12.0,
        prefix_hit_tokens=10240,
    ),
    cache_layout=dict(context=1024, page_size=16, layout="PKZH"),
    weight_layout=dict(layout="rows"),
    persistent=dict(
        weights="bf16", variant="five", structure="five", barriers="poll", copier="inline",
        design=dict(kib=16, slots=13), streamed_bytes=2_000_000_000,
    ),
)  # fmt: skip


@pytest.fixture
def make_record():
    """A record as an H200 makes it: of a tile, or of another kind, in which fields without a value here are null."""

    def make(kind="tile", **fields) -> record.Record:
        names = record.KINDS[kind].fields | record.ORIGIN
        known = VALUES | (STEP if "batch" in names else {}) | OF_KIND.get(kind, {})
        if fields.get("op") == "attention":
            known |= dict(page_size=0, kv_dtype="auto")
        return record.new(kind, **{name: value for name, value in known.items() if name in names} | fields)

    return make
