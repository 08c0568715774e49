"""Parameters of calls in sizes that no tile divides, for `covering.all_pairs`."""

from typing import Any

from pallas_kernels import DTYPES, Tiles

FORMS = ("small", "large", "tensor cores", "many rows", "weights first")
STREAM = dict(
    form=FORMS,
    rows=(0, 1),
    block_k=(16, 64),
    num_stages=(1, 3),
    dtype=DTYPES,
    norm_offset=(0.0, 1.0),
)
"""Of every kernel that streams a weight. Of the sizes that go with them, 45 inputs are less than a block of 64, and 150
end inside a later one; so do 21 and 67 outputs with blocks of 32."""
MOST_OF_ONE = 16
"""Rows that a sequence of the smallest cache takes."""
HEADS = ((3, 3), (6, 2), (5, 1))
"""(heads, kv_heads): multi-head, grouped, multi-query."""
KV_DTYPES = (None, ("int8", "int8"), ("float8_e4m3fn", "float8_e4m3fn"), (None, "float8_e4m3fn"), ("int8", None))
"""Of keys and values in a cache; None is the queries' dtype."""


def stream_tiles(case: dict[str, Any], block_n: int = 1) -> tuple[Tiles, dict[str, Any]]:
    """The tiles of a case of `STREAM` and all its other parameters; `block_n` is the least that the call can take.

    Few rows in the form that unrolls over them, which takes a second a row to compile; of many rows one block and
    two.
    """
    rest = {name: value for name, value in case.items() if name not in ("form", "block_k", "num_stages")}
    form = case["form"]
    tiles = Tiles(
        block_n=block_n if form == "small" else max(block_n, 32),
        block_k=case["block_k"],
        num_stages=case["num_stages"],
        mma=form not in ("small", "large"),
        block_m=32 if form == "many rows" else 16,
        swap_ab=form == "weights first",
    )
    rows = {"tensor cores": (5, 16), "many rows": (21, 40), "weights first": (7, 19)}.get(form, (1, 3))
    return tiles, rest | dict(rows=rows[case["rows"]])


def sequences_of(case: dict[str, Any]) -> dict[str, int]:
    """`sequences` and `padding` of a case in numbers: how many of its rows are padding, and of how many sequences."""
    rows = case["rows"]
    sequences = dict(one=-(-rows // MOST_OF_ONE), half=-(-rows // 2), each=rows)[case["sequences"]]
    return dict(sequences=sequences, padding=-(-rows // 3) if case["padding"] and rows > 1 else 0)
