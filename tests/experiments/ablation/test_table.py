"""The table of ablations: the shipped step first, the newest of each, and what the run before gave."""

import pytest

from experiments.ablation.ablations import ABLATIONS
from experiments.ablation.table import ablation_table


@pytest.fixture
def ablated(make_record):
    """A record of the step without something; of the shipped step where nothing is named."""

    def make(ablation="", **fields):
        figures = dict(
            ablation=ablation, model="llama-3.2-1b", context=1024, tried=False, ms_per_token=1.0, ms_p5=0.9, ms_p95=1.1,
            gain_us=40.0 if ablation else None, predicted_us=30.0,
        )  # fmt: skip
        return make_record("ablation", **figures | fields)

    return make


def lines(records):
    """The cells of each line, by the header's names."""
    header, body = ablation_table(records)
    return [dict(zip(header, map(str, line), strict=True)) for line in body]


def test_the_shipped_step_first_and_the_newest_run(ablated):
    names = ["", *(one.name for one in ABLATIONS)]
    old = [ablated(name, date="2026-01-01", status="old") for name in reversed(names)]
    new = [ablated(name, date="2026-01-02") for name in reversed(names)]
    found = lines([*new, *old])
    assert len(found) == len(names) and {line["status"] for line in found} == {"ok"}
    assert found[0]["left out"] == "nothing: as shipped" and found[0]["predicted us"] == "-"
    assert (found[1]["gives us"], found[1]["predicted us"]) == ("40.0", "30")
    assert found[1]["ms/token (p5 to p95)"] == "1.000 (0.900 to 1.100)"


def test_what_the_run_before_gave(ablated):
    runs = [
        [ablated(date=day, ms_per_token=ms), ablated("control", date=day, gain_us=gain)]
        for day, ms, gain in (("2026-01-03", 3.8, 40.0), ("2026-01-01", 5.0, 70.0), ("2026-01-02", 4.0, 60.0))
    ]
    found = lines([one for run in runs for one in run])
    assert [line["run before"] for line in found] == ["4.000 ms", "60.0"]
    assert found[1]["gives us"] == "40.0"
    assert [line["run before"] for line in lines(runs[0])] == ["-", "-"]


def test_what_is_void_has_no_time(ablated):
    (line,) = lines([ablated("control", status="void: x", gain_us=None)])
    assert (line["ms/token (p5 to p95)"], line["gives us"], line["status"]) == ("-", "-", "void: x")


def test_a_batch_stands_by_itself(ablated):
    found = lines([ablated(batch=16), ablated("control", batch=16), ablated("control"), ablated()])
    assert [(line["batch"], line["left out"]) for line in found] == [
        ("1", "nothing: as shipped"), ("1", "control"), ("16", "nothing: as shipped"), ("16", "control"),
    ]  # fmt: skip


def test_what_is_no_more_and_what_is_tried_say_so(ablated):
    tried = next(one for one in ABLATIONS if one.tried)
    found = lines([ablated("magic"), ablated(tried.name, tried=True, predicted_us=-2.0, gain_us=1.5)])
    assert [line["left out"] for line in found] == ["magic (removed)", f"{tried.name} (tried)"]
    assert [line["predicted us"] for line in found] == ["30", "2"], "of what is tried, what it should give"
