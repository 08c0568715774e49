"""Whatever a results file holds, it is refused by file, line and field, or all that reads it takes it."""

import pytest

from experiments import promote
from experiments.bench import record, select
from experiments.bench.errors import ResultsError
from experiments.report import __main__ as report
from experiments.sweep import summary

WRONG = (None, 0, -1, 7.5, "", "x", True, {}, [], dict(a=1), float("nan"), 10**400)


@pytest.mark.parametrize("status", ["ok", "failed: out of memory"])
@pytest.mark.parametrize("kind", record.KINDS)
def test_a_field_of_any_value(kind, status, make_record, device, tmp_path, capsys):
    whole, taken = make_record(kind, status=status), 0
    record.check(whole, "here")
    for field in whole:
        for value in WRONG:
            try:
                found = record.check(whole | {field: value}, "results.jsonl:7")
            except ResultsError as error:
                assert str(error).startswith(f"results.jsonl:7: {field}: expected "), str(error)
                continue
            taken += 1
            records = [make_record(), whole, found]
            report.results_page(records, tmp_path), report.claims(records)
            known = select.known(records)
            summary.winners(known), summary.failures(known), summary.without_gpu(known)
            if kind in ("tile", "tile_in_layer"):
                promote.promote(records, device, tmp_path / "tuned")
    assert taken
