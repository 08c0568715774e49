"""Page tables that are drawn: every page once, in no order, the same for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.errors import UsageError
from experiments.bench.pages import check_page_sizes, pages_of, shuffled_table


@pytest.mark.parametrize("context, page_size, pages", [(80, 0, 1), (80, 16, 5), (81, 16, 6), (80, 256, 1)])
def test_a_sequence_has_as_many_pages_as_hold_its_context(context, page_size, pages):
    assert pages_of(context, page_size) == pages


@pytest.mark.parametrize("sequences, pages", [(1, 2), (2, 1), (3, 5), (16, 64)])
def test_a_table_has_every_page_once_and_none_in_its_own_place(sequences, pages):
    for seed in range(4):
        table = shuffled_table(jax.random.key(seed), sequences, pages)
        assert table.shape == (sequences, pages) and table.dtype == jnp.int32
        flat = np.asarray(table).reshape(-1)
        assert sorted(flat) == list(range(sequences * pages))
        assert (flat != np.arange(flat.size)).all()
    table = np.asarray(table)
    if table.size > 100:
        assert (np.diff(table, axis=1) == 1).mean() < 0.05, "pages of a sequence are no neighbours"


@pytest.mark.slow
def test_a_table_is_fixed_by_its_key_and_compiles():
    one, again, other = (shuffled_table(jax.random.key(seed), 4, 8) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    compiled = jax.jit(shuffled_table, static_argnums=(1, 2))(jax.random.key(0), 4, 8)
    np.testing.assert_array_equal(one, compiled)
    np.testing.assert_array_equal(shuffled_table(jax.random.key(0), 1, 1), [[0]])


def test_a_page_with_room_for_the_context_is_refused():
    check_page_sizes("page_sizes", (0, 16, 79), 80)
    with pytest.raises(UsageError, match="page_sizes: expected less than the context, 80, got 80"):
        check_page_sizes("page_sizes", (16, 80), 80)
