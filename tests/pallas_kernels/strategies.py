"""What hypothesis draws: sizes that no tile divides, tiles of both forms, dtypes."""

from hypothesis import strategies as st

from pallas_kernels import DTYPES, Tiles
from pallas_kernels.common.tile_space import is_power_of_two

SEEDS = st.integers(0, 2**16)
dtypes = st.sampled_from(DTYPES)
ragged = st.integers(17, 150).filter(lambda size: not is_power_of_two(size))
"""A size that is smaller than one block, or ends inside one."""


def stream_tiles(block_n=(1, 2, 8, 32)) -> st.SearchStrategy[Tiles]:
    """Tiles of a weight-streaming kernel, small enough for a few blocks of a `ragged` size."""
    vectors = st.builds(
        Tiles,
        block_n=st.sampled_from(block_n),
        block_k=st.sampled_from((16, 32, 64)),
        num_stages=st.sampled_from((1, 3)),
    )
    tensor_cores = st.builds(
        Tiles,
        block_n=st.sampled_from([n for n in block_n if n >= 16] or [16]),
        block_k=st.sampled_from((16, 32, 64)),
        num_stages=st.sampled_from((1, 3)),
        mma=st.just(True),
    )
    return vectors | tensor_cores


def rows_for(tiles: Tiles) -> st.SearchStrategy[int]:
    """1 to 16 rows; few in the form that unrolls over them, which takes a second a row to compile."""
    return st.integers(1, 16 if tiles.mma else 3)
