"""Tables as they are printed."""

import dataclasses

import pytest

import pallas_kernels as pk
from experiments.bench import tables

BODY = [("a", tables.number(1.0)), ("bcd", tables.number(None))]


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    assert tables.text(("name", "us"), BODY).splitlines() == ["name    us", "----------", "a     1.00", "bcd      -"]
    assert tables.text(("name", "us"), []).splitlines() == ["name  us", "--------"]


def test_markdown():
    assert tables.markdown(("name", "us"), BODY).splitlines() == [
        "| name | us |", "| --- | --- |", "| a | 1.00 |", "| bcd | - |"
    ]  # fmt: skip


def test_a_number_keeps_its_value_beside_its_form():
    shown = tables.number(1.23456, ".1f")
    assert str(shown) == "1.2" and shown == 1.23456
    assert tables.number(None) == "-" and str(tables.number(0.0)) == "0.00"


@pytest.mark.parametrize(
    "values, shown",
    [
        ((5.24, 5.21, 5.31), "5.24 (5.21 to 5.31)"),
        ((5.24, None, 5.31), "5.24"),
        ((5.24, 5.21, None), "5.24"),
        ((None, 5.21, 5.31), "-"),
    ],
)
def test_spread(values, shown):
    assert tables.spread(*values) == shown


def test_tiles_as_text():
    assert tables.tiles_text(dict(block_n=2, mma=False)) == "block_n=2"
    assert tables.tiles_text(dict(block_n=2, mma=True)) == "block_n=2 mma"
    assert tables.tiles_text(dict(block_s=64, splits=0)) == "block_s=64"
    assert tables.tiles_text(None) == "-"


def test_a_context_names_the_size_of_its_pages():
    assert tables.in_pages(8192, 64) == "8192 pages of 64"
    assert tables.in_pages(tables.number(8192, ".0f"), 64) == "8192 pages of 64"
    assert tables.in_pages(8192, 0) == 8192 and tables.in_pages("", None) == ""


def test_fields_of_many_rows_are_told_where_they_are_not_the_default(monkeypatch):
    tiles = dataclasses.make_dataclass("Tiles", [("block_n", int), ("block_m", int, dataclasses.field(default=16))])
    monkeypatch.setattr(pk, "Tiles", tiles)
    assert tables.tiles_text(dict(block_n=2, block_m=16)) == "block_n=2"
    assert tables.tiles_text(dict(block_n=16, block_m=64)) == "block_n=16 block_m=64"
