"""Writes the tables from the committed results: two in README.md, all in experiments/RESULTS.md.

    python -m experiments.report [--check] [--pictures]

Reads experiments/results/*.jsonl, rewrites what stands between `<!-- results:begin -->` and `<!-- results:end -->` in
README.md, and all of RESULTS.md. With --check nothing is written: the exit status is 1 where one of them is not what
would be written. With --pictures the pictures of each device are drawn into experiments/results/<device>/ as well.
"""

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pallas_kernels as pk
from experiments.bench import log as logs
from experiments.bench import options as command_line
from experiments.bench import select
from experiments.bench.errors import ResultsError
from experiments.bench.files import replace_text
from experiments.bench.log import RESULTS
from experiments.bench.record import Record
from experiments.decode.plots import draw_decode
from experiments.decode.table import newest
from experiments.report.claim import claim
from experiments.report.quantised import quantised
from experiments.report.sections import WIDTH, rendered
from experiments.report.without_gpu import WITHOUT_GPU
from experiments.serve_bench.plots import draw_serve
from experiments.sweep.plots import draw_gpu

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOTE = "<!-- Written by `python -m experiments.report` from experiments/results/. -->"
INTRODUCTION = (
    "Every figure of this project, with the command that makes it. bf16, cold weights, dependent calls in command "
    "buffers, launch gaps included; random weights. The read ceiling is a Pallas kernel's streaming read, measured in "
    "the run of each record; runs differ by 1 to 2%, as their ceilings do. The records name the command, the commit "
    "and the sources that made them: [results/](results). What was tried and what bounds the rest: "
    "[NOTES.md](NOTES.md)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to write.

    Attributes:
        check: write nothing; fail where a page is out of date. pictures: draw them too (needs the extra 'plot').
        readme, page: the two pages. results: a folder of JSONL files.
    """

    check: bool = False
    pictures: bool = False
    readme: str = str(ROOT / "README.md")
    page: str = str(RESULTS.parent / "RESULTS.md")
    results: str = str(RESULTS)


def devices_of(records: Sequence[Record]) -> list[str]:
    """The GPUs that made records, that with the most first."""
    found = [one["device"] for one in records if pk.find_device(one["device"])]
    return sorted(dict.fromkeys(found), key=lambda device: -found.count(device))


def results_page(records: Sequence[Record], pictures: Path) -> str:
    """RESULTS.md."""
    parts = ["# Results", NOTE, textwrap.fill(INTRODUCTION, WIDTH)]
    for device in devices_of(records):
        parts.append(f"## {device}")
        known = pk.find_device(device)
        drawn = sorted((pictures / known.key).glob("*.png")) if known else []
        parts += rendered([one for one in records if one["device"] == device])
        if drawn and known:
            parts += ["### Pictures", *(f"![{path.stem}](results/{known.key}/{path.name})" for path in drawn)]
    if len(parts) == 3:
        parts.append("No results of a GPU are committed yet.")
    if found := rendered(records, WITHOUT_GPU):
        parts += ["## Without a GPU", *found]
    return "\n\n".join(parts) + "\n"


def claims(records: Sequence[Record]) -> str:
    """What the README shows: the claim of the device with the most records, and what quantised weights give there."""
    for device in devices_of(records):
        if text := claim(records, device):
            return "\n\n".join(part for part in (NOTE, text, quantised(records, device)) if part)
    return "\n\n".join([NOTE, "No results of a GPU are committed yet."])


def replaced(readme: str, text: str) -> str:
    """The README with the part between the markers replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultsError(f"README: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def run(options: Options, _: str) -> int:
    folder, readme, page = Path(options.results), Path(options.readme), Path(options.page)
    if not folder.is_dir():
        raise ResultsError(f"results: no folder {folder}")
    records = [found for path in sorted(folder.glob("*.jsonl")) for found in logs.read(path)]
    if not readme.is_file():
        raise ResultsError(f"readme: no file {readme}")
    if options.pictures and not options.check:
        draw(records, folder)
    try:
        text = readme.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ResultsError(f"readme: {readme} is no text in UTF-8") from None
    pages = {readme: replaced(text, claims(records)), page: results_page(records, folder)}
    old = {path: path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "" for path in pages}
    stale = [path for path in pages if old[path] != pages[path]]
    if options.check:
        for path in stale:
            print(f"{path.name}: its results are out of date; run python -m experiments.report", file=sys.stderr)
        return int(bool(stale))
    for path in pages:
        if path in stale:
            replace_text(path, pages[path])
        print(f"{path.name}: {'written' if path in stale else 'already up to date'}")
    return 0


def draw(records: Sequence[Record], folder: Path) -> None:
    """The pictures of every device that has records."""
    for device in pk.DEVICES.values():
        tiles = [
            one for case in select.by_case(select.of_device(records, device)).values() for one in select.fullest(case)
        ]
        if tiles:
            print("\n".join(draw_gpu(tiles, folder / device.key, device)))
        mine = [one for one in records if pk.find_device(one["device"]) == device]
        if steps := newest(mine):
            peers = [one for one in mine if one["kind"] == "peer"]
            print(draw_decode(steps, folder / device.key / "decode.png", peers))
        if served := [one for one in mine if one["kind"] == "serve"]:
            print("\n".join(draw_serve(served, folder / device.key)))


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.report", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
