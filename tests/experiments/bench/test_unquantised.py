"""How much faster quantised weights are, in tables of decode and of prefill."""

import pytest

from experiments.decode.table import decode_table
from experiments.prefill.table import prefill_table

TABLES = dict(
    decode=(decode_table, dict(implementation="triton", context=1024), "ms_per_token"),
    prefill=(prefill_table, dict(implementation="triton"), "ms"),
)


@pytest.mark.parametrize("kind", TABLES)
def test_a_quantised_model_stands_beside_the_published_one(kind, make_record):
    table, fields, ms = TABLES[kind]

    def make(model, time, **more):
        return make_record(kind, **fields | dict(model=model, date="2026-01-02T00:00:00Z") | {ms: time} | more)

    name = "llama-3.1-8b"
    records = [
        make(name, 9.0, date="2026-01-01T00:00:00Z"), make(name, 4.0), make(f"{name}-int8", 2.0),
        make(f"{name}-int4-g128", 5.0), make(f"{name}-fp8", 2.0, status="void: tokens differ"),
        make(f"{name}-int8", 2.0, batch=8), make("llama-3.2-1b-int8", 1.0), make(f"{name}-int8", 1.0, dtype="f16"),
    ]  # fmt: skip
    header, body = table(records)
    lines = [dict(zip(header, map(str, line), strict=True)) for line in body]
    ratios = {(one["model"], one["dtype"], one["batch"]): one["times unquantised"] for one in lines}
    assert ratios == {
        (name, "bf16", "1"): "-", (f"{name}-int8", "bf16", "1"): "2.00", (f"{name}-int4-g128", "bf16", "1"): "0.80",
        (f"{name}-fp8", "bf16", "1"): "-", (f"{name}-int8", "bf16", "8"): "-", ("llama-3.2-1b-int8", "bf16", "1"): "-",
        (f"{name}-int8", "f16", "1"): "-",
    }  # fmt: skip
    assert "times unquantised" not in table(records[:2])[0], "no column where nothing is quantised"


def test_xla_s_time_is_beside_xla_s(make_record):
    fields = dict(context=1024, implementation="xla")
    plain, less = (
        make_record("decode", **fields, model="qwen2.5-0.5b", ms_per_token=6.0),
        make_record("decode", **fields, model="qwen2.5-0.5b-int8", ms_per_token=4.0),
    )
    other = make_record("decode", **fields | dict(implementation="triton"), model="qwen2.5-0.5b", ms_per_token=1.0)
    header, body = decode_table([other, plain, less])
    assert [str(line[list(header).index("times unquantised")]) for line in body] == ["-", "1.50"]
