"""The heuristics against what was measured: near the fastest tile of every case in the committed results."""

from pathlib import Path

import pytest

from experiments import cases, promote, row_log, tables
from pallas_kernels.common import devices

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
SLOWER = 1.15


def measured():
    """(device, case fields, rows) of every case that a GPU measured."""
    rows = [row for path in sorted(RESULTS.glob("*.jsonl")) for row in row_log.read(path)]
    for device in devices.DEVICES.values():
        for fields, members in tables.by_case(promote.gpu_rows(rows, device)).items():
            yield pytest.param(device, fields, members, id="-".join(map(str, (device.key, *fields))))


CASES = list(measured())


@pytest.mark.skipif(not CASES, reason="no results of a GPU in experiments/results")
@pytest.mark.parametrize("device, fields, rows", CASES)
def test_the_heuristic_is_near_the_winner(device, fields, rows):
    op, model, count, context, dtype = fields
    case = cases.make(op, model, rows=count, context=context or 1024, dtype=dtype)
    default = cases.fields_of(case.tiles.default(case.shape, device))
    ok = tables.timed(promote.fullest(rows))
    if not ok:
        pytest.skip("no tile of this case has a time")
    times = [row["median_us"] for row in ok if row["tiles"] == default]
    if not times:
        pytest.skip("the heuristic's tile of today is not among the rows")
    assert times[0] <= SLOWER * ok[0]["median_us"], f"{ok[0]['tiles']} takes {ok[0]['median_us']} us"
