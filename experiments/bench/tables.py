"""Plain-text and Markdown tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pallas_kernels as pk
from tokenspeed.models.kv_dtypes import AUTO

BY_DEFAULT = ("block_m", "block_t", "splits")
"""Fields of tiles that are told only where they differ from their default: what few rows do not use."""
Table = tuple[Sequence[str], list[list[Any]]]
"""Header and lines."""


def text(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """Columns aligned with spaces, numbers to the right."""
    cells = [[str(cell) for cell in line] for line in [header, *body]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    right = [all(not isinstance(line[i], str) or line[i] in ("", "-") for line in body) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right)).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


class Number(float):
    """A number with its printed form."""

    def __new__(cls, value: float, form: str):
        self = super().__new__(cls, value)
        self.form = form
        return self

    def __str__(self) -> str:
        return format(float(self), self.form)


def number(value: float | None, form: str = ".2f") -> Any:
    """A number to be printed in that form; '-' for None."""
    return "-" if value is None else Number(value, form)


def spread(middle: float | None, low: float | None, high: float | None, form: str = ".2f") -> str:
    """'5.24 (5.21 to 5.31)'."""
    if middle is None:
        return "-"
    return f"{middle:{form}}" if low is None or high is None else f"{middle:{form}} ({low:{form}} to {high:{form}})"


def in_pages(context: Any, page_size: int | None, kv_dtype: str | None = None) -> Any:
    """A context as it is shown, for a paged cache in 8 bits '8192 pages of 64, int8'."""
    paged = f"{context!s} pages of {page_size}" if page_size else context
    return paged if kv_dtype in (None, AUTO) else f"{paged!s}, {kv_dtype}"


def tiles_text(tiles: dict[str, Any] | None) -> str:
    """'block_n=2 block_k=1024 num_warps=4', flags by name alone, and nothing of what is not used."""
    if tiles is None:
        return "-"
    of = pk.AttentionTiles if "block_s" in tiles else pk.Tiles
    told = {name: value for name, value in tiles.items() if value and not _is_default(of, name, value)}
    return " ".join(name if value is True else f"{name}={value}" for name, value in told.items())


def _is_default(of: type, name: str, value: Any) -> bool:
    return name in BY_DEFAULT and any(f.name == name and f.default == value for f in dataclasses.fields(of))
