"""Writes the winners of a sweep to pallas_kernels/tuned/<device>/<op>.json.

    python -m experiments.promote RESULTS.jsonl [MORE.jsonl ...]

Only records of a GPU whose numerics passed count. A winner takes the place of the incumbent (the tuned tile if these
results timed it, else the heuristic's) only where it is faster by more than the noise, 4%, in the same results, or
where that leaves floats to a next kernel that takes fixed point: such tiles count nowhere but in a layer. Where
`experiments.layer.choose_tiles` tried the tiles of a case in a layer, that decides, by the same 4% of the op's time.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pallas_kernels as pk
from experiments.bench import cases, log, select, tables
from experiments.bench import options as command_line
from experiments.bench.cases import Case
from experiments.bench.errors import ResultsError, UsageError
from experiments.bench.files import replace_text
from experiments.bench.record import Record
from pallas_kernels import Device

NOISE = 0.04
TUNED = Path(__file__).resolve().parents[1] / "pallas_kernels" / "tuned"
LAYER_EVIDENCE = ("layer_us", "layer_p10_us", "layer_p90_us", "layer_tiles", "layer_context")
EVIDENCE = (
    *LAYER_EVIDENCE,
    "median_us", "p10_us", "p90_us", "samples", "achieved_gbps", "percent_of_ceiling", "ceiling_gbps", "xla_us",
    "error", "error_xla", "device", "driver", "clocks", "jax", "sources", "commit", "dirty", "date", "command",
)  # fmt: skip


def entries_of(path: Path, op: pk.Op) -> list[dict[str, Any]]:
    """The entries of an op's tuned file; [] where there is none."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())["entries"]
        for entry in entries:
            op.space.shape(**entry["shape"])
            op.space.tiles(**entry["tiles"])
        return entries
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: expected a JSON object with 'entries' of a shape and tiles ({error})") from None


def decide(
    case: Case, records: Sequence[Record], entry: dict[str, Any] | None, device: Device
) -> tuple[Record | None, str]:
    """The record to promote, or None, and why.

    Tiles that leave floats where the next kernel wants fixed point do not count: what it then rounds is in its time.
    """
    ok = [one for one in select.timed(select.newest(records)) if case.counts(one)]
    if not ok:
        return None, "no tile has a time"
    best = ok[0]
    heuristic = dataclasses.asdict(case.known.default_tiles(case.shape, device))
    tuned = case.tiles(entry["tiles"]) if entry else case.known.chosen_tiles(case.shape, device)
    if case.leaves_floats(tuned):
        return best, f"{best['median_us']:.2f} us, where the tuned tile leaves floats to the next kernel"
    used = [dataclasses.asdict(tuned)]
    rivals = [one for tiles in (*used, heuristic) for one in ok if one["tiles"] == tiles]
    if not rivals:
        if any(one["tiles"] == heuristic for one in records):
            return best, f"{best['median_us']:.2f} us, where the heuristic does not run"
        return None, "neither the tuned tile nor the heuristic was measured"
    rival = rivals[0]
    name = "the heuristic" if rival["tiles"] == heuristic else "the tuned tile"
    gain = f"{best['median_us']:.2f} us, {name} {rival['median_us']:.2f} us"
    if best["median_us"] < (1 - NOISE) * rival["median_us"]:
        return best, gain
    return None, f"{gain}: within the noise of {NOISE:.0%}"


def decide_in_layer(tried: Sequence[Record], ok: Sequence[Record]) -> tuple[Record | None, str]:
    """As `decide`, from records of tiles in a layer: the chosen one's record in the sweep, with `layer_us`."""
    chosen, rival = (next((one for one in reversed(tried) if one[what]), None) for what in ("chosen", "incumbent"))
    if chosen is None or rival is None:
        return None, "the choice in a layer was cut short"
    why = f"{chosen['layer_us']:.2f} us a layer, the incumbent {rival['layer_us']:.2f} us"
    alone = next((one for one in ok if one["tiles"] == chosen["tiles"]), None)
    if chosen["incumbent"] or alone is None:
        return None, why
    return alone | {field: chosen[field] for field in LAYER_EVIDENCE}, why


def promote(records: Sequence[Record], device: Device, root: Path = TUNED) -> int:
    """Promotes the winners of one device's records; returns how many entries changed, and says what became of each."""
    changed: dict[Path, list[dict[str, Any]]] = {}
    count = 0
    tried_in_layer = [one for one in select.of_device(records, device, "tile_in_layer") if one["status"] == "ok"]
    in_layer = select.by_case(tried_in_layer)
    for name, members in select.by_case(select.of_device(records, device)).items():
        case = cases.of_record(members[0])
        shape = dataclasses.asdict(case.shape)
        path = root / device.key / f"{case.known.tuned}.json"
        entries = changed.get(path) or entries_of(path, case.known)
        kind = case.known.space.shape
        at = next((i for i, entry in enumerate(entries) if kind(**entry["shape"]) == case.shape), len(entries))
        tried = in_layer.get(name)
        if tried:
            winner, why = decide_in_layer(select.newest(tried), select.timed(select.newest(members)))
        else:
            winner, why = decide(case, members, entries[at] if at < len(entries) else None, device)
        where = f"{case.op} {case.model} rows={case.rows}"
        where += (
            f" context={tables.in_pages(case.context, case.page_size, case.kv_dtype)}" if case.record_context else ""
        )
        print(f"{'promoted' if winner else 'kept    '}  {where}: {why}")
        if winner is not None:
            evidence = {
                field: winner.get(field) for field in EVIDENCE if field in winner or field not in LAYER_EVIDENCE
            }
            entries[at : at + 1] = [dict(shape=shape, tiles=winner["tiles"], evidence=evidence)]
            changed[path] = entries
            count += 1
    for path, entries in changed.items():
        replace_text(path, json.dumps(dict(entries=entries), indent=1) + "\n")
    return count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The files of results whose winners are promoted."""

    files: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.files:
            raise UsageError("expected files of results: python -m experiments.promote RESULTS.jsonl [MORE.jsonl ...]")
        for path in self.files:
            if not Path(path).is_file():
                raise UsageError(f"{path}: no such file")


def run(options: Options, _: str) -> None:
    records = [found for path in options.files for found in log.read(path)]
    made_by = [pk.find_device(found["device"]) for found in records if found["kind"] == "tile"]
    if not any(made_by):
        raise ResultsError(f"{', '.join(options.files)}: no tiles measured on a known GPU")
    for device in dict.fromkeys(device for device in made_by if device):
        promote(records, device)


def main(argv: list[str] | None = None) -> int:
    return command_line.main(run, Options, "experiments.promote", __doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
