"""Records: what makes one, what is wrong with one, and which measurement it is.

A record is one JSON object on a line of a results file, of one of `kinds.KINDS`: `new` makes one, `check` judges one
that was read, `key` says which measurement it is.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

import pallas_kernels as pk
from experiments.bench.errors import ResultsError
from experiments.bench.kind import FIXED_POINT, KV_DTYPE, MADE_WITH, ORIGIN, ORIGIN_NEEDS, PAGE_SIZE, Fields
from experiments.bench.kinds import KINDS
from experiments.bench.served_kinds import BATCHED_TOKENS, BY_SERVED
from tokenspeed.models.kv_dtypes import AUTO

Record = dict[str, Any]


def new(kind: str, **values: Any) -> Record:
    """A record of that kind; fields that are not given are null. A field that the kind lacks is a programming error."""
    fields = _fields(kind)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise KeyError(f"{kind}: no fields {', '.join(unknown)}")
    record = dict(kind=kind) | {name: values.get(name) for name in fields}
    problem = _problem(record, [name for name in MADE_WITH if name in fields])
    if problem:
        raise TypeError(problem)
    return record


def check(record: Any, where: str) -> Record:
    """The record, if it is one; else a ResultsError that says at `where` which field is wrong.

    What was written before a field was there has it all the same: its cache was contiguous and not in 8 bits, its
    activations were floats, the engine chose how many tokens of prompts a step took, and of its tiles a field that they
    lack had its default.
    """
    if not isinstance(record, dict):
        raise ResultsError(f"{where}: expected a record, got {_shown(record)}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ResultsError(f"{where}: kind: expected one of {', '.join(KINDS)}, got {_shown(kind)}")
    later = (
        ("page_size", PAGE_SIZE, 0), ("kv_dtype", KV_DTYPE, AUTO), ("fixed_point", FIXED_POINT, None),
        ("max_batched_tokens", BATCHED_TOKENS, 0), ("served", BY_SERVED, False),
    )  # fmt: skip
    for name, field, before in later:
        if name not in record and _fields(kind).get(name) == field:
            record = record | {name: before if record.get("op", "attention") == "attention" else None}
    problem = _problem(record, needed_fields(kind, str(record.get("status")))) or _tiles_problem(record)
    if problem:
        raise ResultsError(f"{where}: {problem}")
    return record | dict(tiles=_whole_tiles(record)) if "tiles" in record else record


def needed_fields(kind: str, status: str) -> tuple[str, ...]:
    """The fields that are not null in a record of that kind and status."""
    found = KINDS[kind]
    return ("status", *found.needed, *(found.figures if status.startswith("ok") else ()), *ORIGIN_NEEDS)


def key(record: Record) -> str:
    """Which measurement it is."""
    return json.dumps([record["kind"], *(record[name] for name in KINDS[record["kind"]].key)], sort_keys=True)


def newest(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of a kind by date; of those of one measurement only the last."""
    last: dict[str, Record] = {}
    for record in sorted((r for r in records if r["kind"] == kind), key=lambda r: r["date"] or ""):
        last[key(record)] = record
    return list(last.values())


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To the digits that a record keeps."""
    return None if value is None else round(value, digits)


def finite(value: float) -> float | None:
    """None for infinity and NaN, of which JSON knows nothing."""
    return value if math.isfinite(value) else None


def _fields(kind: str) -> Fields:
    return KINDS[kind].fields | ORIGIN


def _problem(record: Record, needed: Iterable[str]) -> str:
    """What is wrong with a record of a known kind, in which those fields are not null; '' where nothing is."""
    fields = _fields(record["kind"])
    for name in fields:
        if name not in record:
            return f"{name}: missing in a record of kind {record['kind']}"
    for name, value in record.items():
        if name == "kind":
            continue
        if name not in fields:
            return f"{name}: not a field of kind {record['kind']}"
        wanted = fields[name][0]
        if not (wanted.holds(value) or (value is None and name not in needed)):
            return f"{name}: expected {wanted.wanted}, got {_shown(value)}"
    return ""


def _tiles_problem(record: Record) -> str:
    """Of an op that is known, tiles have its fields."""
    op, tiles = pk.OPS.get(record.get("op", "")), record.get("tiles")
    if op is None or tiles is None:
        return ""
    fields = dataclasses.fields(op.space.tiles)
    names, needed = [field.name for field in fields], {f.name for f in fields if f.default is dataclasses.MISSING}
    if needed <= set(tiles) <= set(names):
        return ""
    return f"tiles: expected {', '.join(names)}, got {_shown(tiles)}"


def _whole_tiles(record: Record) -> Any:
    """A record's tiles, of an op that is known with every field of them, in order."""
    op, tiles = pk.OPS.get(record.get("op", "")), record["tiles"]
    return tiles if op is None or tiles is None else dataclasses.asdict(op.space.tiles(**tiles))


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]
