"""The tables in README.md and RESULTS.md."""

import functools
import json
import re
from pathlib import Path

import pytest

from experiments.bench import log as logs
from experiments.report import __main__ as report
from experiments.report import sections
from experiments.report.claim import claim
from experiments.report.origin import origin
from experiments.report.quantised import quantised

EMPTY = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nMore.\n"


class Files:
    """A README, a page and records, and the command on them."""

    def __init__(self, folder: Path):
        self.readme, self.page, self.results = folder / "README.md", folder / "RESULTS.md", folder / "results"
        self.readme.write_text(EMPTY)
        self.results.mkdir()

    def run(self, *arguments, records=None):
        if records is not None:
            (self.results / "a.jsonl").write_text("".join(json.dumps(found) + "\n" for found in records))
        return report.main(
            [f"--readme={self.readme}", f"--page={self.page}", f"--results={self.results}", *arguments]
        )  # fmt: skip


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def make_step(make_record):
    """A record of a decode step of 1B on an H200."""

    def make(**fields):
        step = dict(
            model="llama-3.2-1b", context=1024, implementation="triton", ms_per_token=0.7, ms_p5=0.69, ms_p95=0.72,
            floor_ms=0.6, percent_of_ceiling=85.7, xla_ms_per_token=1.2, tokens_per_s=1428.6, steps=127,
        )  # fmt: skip
        return make_record("decode", **step | fields)

    return make


@pytest.fixture
def make_peer(make_record):
    """A record of another engine, at the same case."""

    def make(engine, ms, **fields):
        peer = dict(
            model="llama-3.2-1b", context=1024, implementation=engine, engine=engine, engine_version="2.0, torch 3.0",
            how="compiled", ms_per_token=ms, ms_min=ms - 0.01, ms_max=ms + 0.01, steps=127,
        )  # fmt: skip
        return make_record("peer", **peer | fields)

    return make


def test_no_results(files):
    assert files.run("--check") == 1 and files.readme.read_text() == EMPTY and not files.page.exists()
    assert files.run() == 0 and files.run("--check") == 0
    readme = files.readme.read_text()
    assert "No results of a GPU" in readme and "old" not in readme
    assert readme.startswith("# Title\n") and readme.endswith("\n\nMore.\n")
    assert "No results of a GPU" in files.page.read_text()


def test_mistakes_are_one_line_and_write_nothing(files, capsys):
    before = files.readme.read_text()
    assert files.run(f"--results={files.results / 'nowhere'}") == 2 and files.readme.read_text() == before
    files.readme.write_bytes(b"\xff")
    assert files.run() == 2 and files.readme.read_bytes() == b"\xff"
    files.readme.unlink()
    assert files.run() == 2 and not files.page.exists()
    errors = capsys.readouterr().err.splitlines()
    for error, message in zip(errors, ("results: no folder", "readme: .* is no text in UTF-8", "readme: no file")):
        assert re.match(f"error: {message}", error)
    assert len(errors) == 3


def test_what_is_out_of_date_is_told_and_what_is_not_is_left(files, make_step, capsys):
    assert files.run(records=[make_step()]) == 0
    assert capsys.readouterr().out.splitlines() == ["README.md: written", "RESULTS.md: written"]
    assert files.run() == 0
    assert capsys.readouterr().out.splitlines() == ["README.md: already up to date", "RESULTS.md: already up to date"]
    before = files.readme.read_text(), files.page.read_text()
    assert files.run("--check", records=[make_step(ms_per_token=0.8)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{name}: its results are out of date; run python -m experiments.report" for name in ("README.md", "RESULTS.md")
    ]
    assert (files.readme.read_text(), files.page.read_text()) == before
    assert files.run() == 0 and "**0.800**" in files.readme.read_text()
    files.page.write_text("")
    assert files.run("--check") == 1
    assert capsys.readouterr().err.splitlines() == [
        "RESULTS.md: its results are out of date; run python -m experiments.report"
    ]


def test_the_claim(make_step, make_peer):
    records = [
        make_step(),
        make_step(ms_per_token=0.9, date="2026-01-01T00:00:00Z"),
        make_step(batch=8, ms_per_token=1.0, ms_p5=0.98, ms_p95=1.03, xla_ms_per_token=None, ceiling_gbps=4100.0),
        make_step(implementation="xla", ms_per_token=1.2),
        make_peer("vllm", 0.81), make_peer("vllm", 0.88, date="2026-01-04T00:00:00Z"), make_peer("torch", 0.9),
        make_peer("torch", 1.4, batch=8, engine_version="9.9"), make_peer("torch", 0.1, batch=16, engine_version="8.8"),
        make_peer("torch", 0.1, context=128), make_peer("vllm", 0.1, status="failed"),
    ]  # fmt: skip
    text = claim(records, "NVIDIA H200")
    lines = [line for line in text.splitlines() if line.startswith("| llama")]
    assert lines == [
        "| llama-3.2-1b | 1 | 0.600 | **0.700** (0.690 to 0.720) | 85.7 | 1.200 | 0.90 | 0.81 to 0.88 |",
        "| llama-3.2-1b | 8 | 0.600 | **1.000** (0.980 to 1.030) | 85.7 | - | 1.40 | - |",
    ]
    assert "on one NVIDIA H200, bf16, context 1024" in text.replace("\n", " ")
    assert "Others: torch 2.0 and torch 9.9 and vllm 2.0, by" in text and "8.8" not in text
    assert "read ceiling 4000 to 4100 GB/s" in text


@pytest.mark.parametrize(
    "fields",
    [
        dict(device="NVIDIA H100"), dict(status="void: tokens differ"), dict(implementation="xla"), dict(batch=16),
        dict(context=128), dict(dtype="f32"), dict(page_size=64), dict(model="llama-3.2-1b-int8"),
    ],
)  # fmt: skip
def test_what_is_not_claimed(make_step, fields):
    assert claim([make_step(**fields)], "NVIDIA H200") == ""


def test_quantised_weights_beside_bf16(make_step, make_peer, make_record):
    one = "llama-3.2-1b"
    cost = functools.partial(make_record, "accuracy", text="stories", device="cpu AMD")
    records = [
        make_step(bytes=2_500_000_000),
        make_step(model=f"{one}-int4-g128", ms_per_token=0.35, ms_p5=0.34, ms_p95=0.36, floor_ms=0.2, bytes=8 * 10**8),
        make_step(model=f"{one}-int8", ms_per_token=0.5, floor_ms=0.3, bytes=1_270_000_000),
        make_step(model=f"{one}-int8", ms_per_token=0.6, date="2026-01-01T00:00:00Z"),
        make_step(model="llama-3.1-70b-int4-g128", ms_per_token=10.0, floor_ms=8.4, bytes=36_700_000_000),
        make_step(model="llama-3.1-8b"),
        make_step(model=f"{one}-fp8", status="void: tokens differ"), make_step(model=f"{one}-fp8", batch=8),
        cost(model="tiny", format="int8", kl_mean=9e-6), cost(model="stories260K", format="int8", kl_mean=7e-4),
        cost(model="tiny", format="int4-g128", kl_mean=3e-3), cost(model="tiny", format="int8", text="b", kl_mean=0.1),
    ]  # fmt: skip
    text = quantised(records, "NVIDIA H200")
    lines = [line for line in text.splitlines() if line.startswith("| llama")]
    assert lines == [
        "| llama-3.1-70b | int4-g128 | 36.70 | 8.400 | **10.000** (0.690 to 0.720) | - | 3.0e-03, - |",
        "| llama-3.2-1b | int8 | 1.27 (2.50) | 0.300 | **0.500** (0.690 to 0.720) | 1.40 | 9.0e-06, 7.0e-04 |",
        "| llama-3.2-1b | int4-g128 | 0.80 (2.50) | 0.200 | **0.350** (0.340 to 0.360) | 2.00 | 3.0e-03, - |",
    ], "no row without a record that counts, and none of bf16"
    models = f"{one},llama-3.1-70b-int4-g128,{one}-int8,{one}-int4-g128"
    assert f"--models={models}`" in text and "vLLM" not in text

    theirs = make_peer("vllm", 0.9, model=f"{one}-fp8")
    others = [
        theirs | dict(ms_per_token=0.8),
        theirs | dict(batch=8),
        theirs | dict(status="failed"),
        make_peer("vllm", 2),
    ]
    text = quantised([*records, theirs, *others], "NVIDIA H200")
    header, _, large, *small = [line for line in text.splitlines() if line.startswith("|")]
    assert header.endswith("| vLLM fp8 ms |") and large.endswith("| 3.0e-03, - | - |")
    assert len(small) == 2 and all(line.endswith("| 0.80 to 0.90 |") for line in small)
    assert f"--engine=vllm --models={one}-fp8`" in text


def test_there_is_no_table_of_quantised_weights_without_records(make_step, files):
    assert quantised([make_step(), make_step(model="llama-3.2-1b-int8", device="NVIDIA H100")], "NVIDIA H200") == ""
    assert files.run(records=[make_step()]) == 0 and "Quantised" not in files.readme.read_text()
    assert files.run(records=[make_step(), make_step(model="llama-3.2-1b-int8")]) == 0
    assert "| llama-3.2-1b | int8 |" in files.readme.read_text()


def test_the_readme_claims_for_the_device_with_the_most_records(files, make_step, make_record):
    other = dict(device="NVIDIA H100 80GB HBM3")
    records = [make_step(**other), make_step(), make_record(), make_step(device="cpu Intel", ms_per_token=70.0)]
    assert files.run(records=records) == 0
    readme = files.readme.read_text()
    assert "NVIDIA H200" in readme and "H100" not in readme and "70.0" not in readme
    page = files.page.read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## NVIDIA H200", "## NVIDIA H100 80GB HBM3"
    ]  # fmt: skip
    assert files.run(records=[*records, make_record(**other), make_record(**other, rows=2)]) == 0
    assert "NVIDIA H100" in files.readme.read_text(), "and for another once it has more"
    assert files.run(records=[make_step(), make_record(**other), make_record(**other, rows=2)]) == 0
    assert "NVIDIA H200" in files.readme.read_text(), "of those that have something to claim"


def test_a_section_a_kind(files, make_step, make_peer, make_record, capsys):
    tile = make_record()["tiles"]
    records = [
        make_step(),
        make_peer("vllm", 0.81), make_peer("vllm", 0.88, date="2026-01-04T00:00:00Z"),
        make_record("generate", model="llama-3.2-1b", context=128, ttft_ms=5.0, tokens_per_s=None),
        make_record(
            "layer", model="llama-3.1-8b", context=1024, implementation="triton", median_us=110.0, p10_us=109.0,
            p90_us=111.0, launches=5, prefetch_bytes=8192, beyond_bytes_us_per_launch=1.25,
        ),
        make_record(),
        make_record(tiles=dict(tile, block_n=8), median_us=12.0),
        make_record(op="attention", context=1024, tiles=dict(block_s=32, splits=8, num_warps=4, num_stages=2)),
        make_record(tiles=dict(tile, block_n=16), status="compile failed: x", median_us=None),
        make_record("interpreted_tile", device="cpu", status="ok (interpret, not timed)"),
        make_record("xla_on_cpu", device="cpu", xla_us=99999.0, tiles=None),
        make_record("cache_layout", context=1024, page_size=16, layout="heads first", median_us=7.0),
        make_record("weight_layout", op="qkv", layout="packed", median_us=8.0),
    ]  # fmt: skip
    assert files.run(records=records) == 0
    page = files.page.read_text()
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# Results", "## NVIDIA H200", "### Decode", "### Other engines", "### The command line", "### Layers",
        "### Ops", "### Layouts",
    ]  # fmt: skip
    assert "99999" not in page and "cpu" not in page
    assert "| llama-3.2-1b | bf16 | 1 | 1024 | 0.600 | 0.700 (0.690 to 0.720) | 1428.6 | 85.7 | 1.200 | 1.71 |" in page
    assert "| vllm | llama-3.2-1b | 1 | 1024 | 0.81 (0.80 to 0.82) | compiled |" in page, "every run of a peer"
    assert "| vllm | llama-3.2-1b | 1 | 1024 | 0.88 (0.87 to 0.89) | compiled |" in page
    assert "| llama-3.2-1b | 128 | 5.0 | - | 25.0 |" in page
    assert "| llama-3.1-8b | 1 | triton | 8 | 110.00 (109.00 to 111.00) | 25.0 | 5 | 1.25 |" in page
    assert "| out | ragged | 1 |  | 10.00 (9.50 to 10.50) | 25.0 | 20.00 | 1.0e-03 (1.0e-03) | block_n=4" in page
    assert "| attention | ragged | 1 | 1024 |" in page and "block_s=32 splits=8" in page
    assert "12.00" not in page and "4 were tried" in page.replace("\n", " ")
    assert "| cache | ragged | 1024 | 16 | heads first | 7.00 (9.50 to 10.50) |" in page
    assert "| weight | ragged | qkv |  | packed | 8.00 (9.50 to 10.50) |" in page
    for part in ("driver 580.1", "jax 0.11.2", "commit cccccccccccc", "2026-01-02", "`python -m experiments.sweep"):
        assert part in page


def test_pages_are_named_where_a_cache_has_them(files, make_step, make_record):
    """And records from before there were any are shown as they were."""
    case = dict(op="attention", context=1024, tiles=dict(block_s=32, splits=8))
    layer = make_record("layer", median_us=110.0)
    old = {name: value for name, value in make_step().items() if name != "page_size"}
    assert files.run(records=[old, layer, make_record(**case)]) == 0
    before = files.page.read_text()
    assert "page" not in before.split("## NVIDIA H200")[1]
    paged = [make_step(page_size=64, ms_per_token=0.75), layer | dict(page_size=64, median_us=115.0)]
    assert files.run(records=[old, layer, make_record(**case), *paged, make_record(**case, page_size=64)]) == 0
    page = files.page.read_text()
    assert "| 1 | 1024 | 0.600 | 0.700 (0.690 to 0.720) | 1428.6 | 85.7 | 1.200 | 1.71 | - |" in page
    assert "| 1 | 1024 | 0.600 | 0.750 (0.690 to 0.720) | 1428.6 | 85.7 | 1.200 | 1.60 | 64 |" in page
    assert "| 110.00 (9.50 to 10.50) | 25.0 |  | - | - |" in page
    assert "| 115.00 (9.50 to 10.50) | 25.0 |  | - | 64 |" in page
    assert "| attention | ragged | 1 | 1024 |" in page and "| attention | ragged | 1 | 1024 pages of 64 |" in page


@pytest.mark.parametrize("commit", [None, "c" * 40])
@pytest.mark.parametrize("date", [None, "2026-01-02T03:04:05Z"])
def test_an_origin_says_what_is_known(commit, date, make_record):
    text = origin([make_record(commit=commit, date=date)], "python -m experiments.sweep")
    assert ("commit cccccccccccc" in text) == (commit is not None) and ("2026-01-02" in text) == (date is not None)
    assert "commit ;" not in text and text.endswith(".")


def test_ablations_and_counters(files, make_record):
    case = dict(model="llama-3.2-1b", context=1024)
    shipped = make_record(
        "ablation", **case, implementation="triton", ablation="", strategy="", without="", tried=False,
        ms_per_token=0.8, ms_p5=0.79, ms_p95=0.81, predicted_us=0.0, predicted_bytes=0, predicted_launches=0,
        drift=0.02, drift_kl=1e-4, drift_max=0.1, tokens_checked=10, tokens_as_shipped=10,
    )  # fmt: skip
    less = shipped | dict(ablation="no such thing", gain_us=12.5, predicted_us=10.0, predicted_launches=3)
    earlier = less | dict(gain_us=11.5, date="2026-01-01T00:00:00Z")
    counted = make_record(
        "counters", **case, implementation="triton", ablation="", kernel="qkv", calls=16, read_bytes=2_000_000,
        written_bytes=1000, step_bytes=1_900_000, step_read_bytes=2_000_000,
    )  # fmt: skip
    more = counted | dict(ablation="no such thing", read_bytes=5_000_000)
    older = counted | dict(kernel="removed", read_bytes=9_000_000, date="2026-01-01T00:00:00Z")
    assert files.run(records=[shipped, earlier, less, older, counted, more]) == 0
    page = files.page.read_text()
    assert "| llama-3.2-1b | 1 | nothing: as shipped | 0.800 (0.790 to 0.810) | - | - | - | ok |" in page
    name = "no such thing (removed)"
    assert f"| llama-3.2-1b | 1 | {name} | 0.800 (0.790 to 0.810) | 12.5 | 11.5 | 10 | ok |" in page
    assert f"| llama-3.2-1b | 1 | {name} | 2.00e-02 | 1.0e-04 | 1.00e-01 | 10 of 10 | 3 |  | 3.00 |" in page
    assert "| llama-3.2-1b | nothing: as shipped | 1.9 | 2.0 | 105.3 | 0.0 |" in page
    assert "as shipped" not in files.readme.read_text()


def test_of_two_sweeps_the_fuller_one_is_shown(make_record):
    tile = make_record()["tiles"]
    full = [make_record(tiles=dict(tile, block_n=n), median_us=10.0 + n, sources="full") for n in (2, 4, 8)]
    few = [make_record(tiles=tile, median_us=3.0, sources="few")]
    _, what, (_, body), members, _ = sections.tiles_section(full + few)
    assert members == full[:1] and len(body) == 1 and "3 were tried" in what


def test_origin_names_what_differs(make_record):
    one, two = (
        make_record(),
        make_record(ceiling_gbps=4100.4, jax="0.12.0", commit="d" * 40, date="2026-02-03T00:00:00Z"),
    )
    assert origin([one], "python -m x") == (
        "`python -m x`\\\nread ceiling 4000 GB/s; driver 580.1; jax 0.11.2; commit cccccccccccc; 2026-01-02."
    )
    assert origin([two, one], "python -m x").splitlines()[1] == (
        "read ceiling 4000 to 4100 GB/s; driver 580.1; jax 0.11.2, 0.12.0; commit cccccccccccc, dddddddddddd; "
        "2026-01-02 to 2026-02-03."
    )


def test_absent_numbers(files, make_record, make_step):
    records = [make_record(xla_us=None, commit=None, driver=None), make_step(xla_ms_per_token=None, driver=None)]
    assert files.run(records=records) == 0 and "| 10.00 (9.50 to 10.50) | 25.0 | - |" in files.page.read_text()


@pytest.mark.slow
def test_pictures(files, make_record, make_step):
    pytest.importorskip("matplotlib")
    records = [make_record(), make_step(), make_step(device="cpu"), make_record("serve")]
    assert files.run("--pictures", "--check", records=records) == 1 and not (files.results / "h200").exists()
    assert files.run("--pictures") == 0
    drawn = sorted(path.name for path in (files.results / "h200").iterdir())
    assert (
        drawn == ["decode.png", "out.png", "roofline.png", "serve-chat.png"] and len(list(files.results.iterdir())) == 2
    )
    shown = [line for line in files.page.read_text().splitlines() if line.startswith("![")]
    assert shown == [f"![{name[:-4]}](results/h200/{name})" for name in drawn]


def test_mistakes_are_one_line(files, capsys):
    (files.results / "bad.jsonl").write_text("nonsense\n")
    assert files.run() == 2 and files.readme.read_text() == EMPTY
    (files.results / "bad.jsonl").unlink()
    files.readme.write_text("no markers")
    assert files.run() == 2
    files.readme.unlink()
    assert files.run() == 2 and not files.page.exists()
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3 and "bad.jsonl:1" in err[0] and "results:begin" in err[1] and "readme" in err[2]


def test_what_is_committed_is_what_the_records_say(capsys):
    assert list(logs.RESULTS.glob("*.jsonl"))
    assert report.main(["--check"]) == 0, capsys.readouterr().err
    assert "No results" not in (report.ROOT / "README.md").read_text()


def test_prefill_has_a_section_once_there_are_records(make_record):
    assert not any(part == "### Prefill" for part in sections.rendered([make_record("decode", xla_ms_per_token=3.0)]))
    records = [
        make_record("prefill"),
        make_record("prefill", start=30000, tokens=512, ms=20.5, products_ms=11.0, attention_ms=7.25, gather_ms=1.5),
        make_record("prefill", batch=8, status="void: something was compiled during timing"),
    ]
    title, _, table, origin_lines = sections.rendered(records)
    assert title == "### Prefill" and "experiments.prefill" in origin_lines
    prompts, void, part = table.splitlines()[2:]
    assert "| 1 | 0 | 1024 | 16.00 | 30.00 (29.00 to 31.00) | 333.3 | - | - | - | cudnn |" in prompts
    assert "| 512 |" in part and "| 11.00 | 7.25 | 1.50 | cudnn |" in part
    assert "| - | - | - | - | - | cudnn |" in void and "void: something" in void


def test_the_engine_has_sections_once_there_are_records(make_record):
    assert not any("Engine" in part for part in sections.rendered([make_record("decode", xla_ms_per_token=3.0)]))
    records = [
        make_record("throughput"),
        make_record("throughput", concurrency=1, output_tokens_per_s=200.0, preemptions=2),
        make_record("throughput", concurrency=64, status="void: something was compiled after the engine was ready"),
        make_record("long_prompt"),
        make_record("shared_prefix"),
    ]
    parts = sections.rendered(records)
    titles = ["### Engine", "### Engine: a long prompt", "### Engine: a shared prefix"]
    assert parts[::4] == titles and all("experiments.throughput" in part for part in parts[3::4])
    one, eight, void = parts[2].splitlines()[2:]
    assert "| 1024 | 128 | 1 | default | 200.0 |" in one and "| 12.5 | 2 |" in one
    assert "| 8 | default | 1024.0 | 8.00 | 90.0, 200.0 | 5.00, 25.50 | 800.0 | 0.50 | 4.00 | 12.5 | 0 |" in eight
    assert "| 64 | default | - | - | - | - | - | - | - | - | - | void: something" in void
    assert "| 30000 | 8 | default | 5.00 | 90.00 | 1500.0 | 100.0 | 100 |" in parts[6]
    assert "| 2048 | 100 | default | 80.00 | 12.00 | 2048 |" in parts[10]


def test_servers_under_load_have_a_section_once_there_are_records(make_record):
    assert not any("Servers" in part for part in sections.rendered([make_record("decode", xla_ms_per_token=3.0)]))
    records = [
        make_record("serve", endpoint="vllm", ttft_ms_p99=45.0),
        make_record("serve"),
        make_record("serve", mix="both", ttft_p95_ratio=1.5, status="void: the client was late"),
    ]
    title, what, table, origin_lines = sections.rendered(records)
    assert title == "### Servers under load" and "experiments.serve_bench" in origin_lines and "due" in what
    ours, theirs, both = table.splitlines()[2:]
    figures = "4.0, 4.5 | 5.00 | 250.0 | 500.0 | 3.50 | - | 0, 0 | 1 | ok |"
    assert (
        f"| 4 | ours | 10.0, 20.0, 30.0 | {figures}" in ours and f"| 4 | vllm | 10.0, 20.0, 45.0 | {figures}" in theirs
    )
    assert "long, 30000 in" in both and "| 0 of 1 | void: the client was late |" in both


def test_accuracy_has_a_section_of_no_gpu_once_there_are_records(make_record, tmp_path):
    assert "Without a GPU" not in report.results_page([make_record("decode", xla_ms_per_token=3.0)], tmp_path)
    records = [
        make_record("accuracy", device="cpu AMD"),
        make_record("accuracy", device="cpu AMD", format="int8", top1=0.98),
        make_record("accuracy", device="cpu AMD", top1=0.5, date="2026-01-01T00:00:00Z"),
    ]
    before, _, page = report.results_page(records, tmp_path).partition("## Without a GPU\n\n### Accuracy of quantised")
    assert "No results of a GPU" in before
    lines = [line for line in page.splitlines() if line.startswith("| ragged")]
    assert len(lines) == 2 and "| 95.00 | 95.00 |" in lines[0] and "| 92 met |" in lines[0] and "missed" in lines[1]


def test_quantised_weights_on_a_processor_have_a_section_once_there_are_records(files, make_step):
    cpu = dict(device="cpu AMD", implementation="xla", dtype="f32", model="qwen2.5-0.5b")
    records = [
        make_step(), make_step(**cpu, ms_per_token=60.0), make_step(**cpu | dict(implementation="triton")),
        make_step(**cpu | dict(model="qwen2.5-0.5b-int8"), ms_per_token=80.0),
    ]  # fmt: skip
    assert files.run(records=records[:1]) == 0 and "Without a GPU" not in files.page.read_text()
    assert files.run(records=records) == 0
    page = files.page.read_text().partition("## Without a GPU\n\n### Decode on a processor")[2]
    lines = [line for line in page.splitlines() if line.startswith("| qwen")]
    assert len(lines) == 2 and "60.000" in lines[0] and "80.000" in lines[1] and "| 0.75 |" in lines[1]
    assert "on cpu AMD." in page and "qwen" not in files.readme.read_text()
