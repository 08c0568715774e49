"""What has no place or no angle: an error where it is known, NaN in that row alone where it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from tests.pallas_kernels import inputs
from tests.pallas_kernels.compare import assert_same_bits
from tests.pallas_kernels.inputs import Layout
from tests.pallas_kernels.marks import slow

HEADS = dict(heads=4, kv_heads=2, head_dim=8)
ROWS, FAULTY = 3, 1
PAGED, SMALL_PAGES, CONTIGUOUS = Layout(16, 3), Layout(6, 8), Layout(48)
both = pytest.mark.parametrize("implementation", ["xla", slow("interpret")])


def qkv(layout, position=20, **options):
    """A call whose rows are all at that position."""
    call = inputs.qkv(inputs.Values(0), rows=ROWS, width=24, layout=layout, dtype="float32", **HEADS, **options)
    return call.replace(sequence=jnp.arange(ROWS, dtype=jnp.int32), **placed(call, layout, "positions", position))


def attention(layout, length=21, **options):
    """A call whose rows are all of that length, over a cache of numbers."""
    call = inputs.attention(inputs.Values(0), rows=ROWS, layout=layout, dtype="float32", **HEADS, **options)
    return call.replace(sequence=jnp.arange(ROWS, dtype=jnp.int32), **placed(call, layout, "lengths", length))


def placed(call, layout, name, value):
    pages = ROWS * (layout.pages or 1)
    keys = inputs.Values(1).normal(pages, 2, layout.page_size, 8, dtype="float32")
    table = None
    if layout.pages is not None:
        table = jnp.arange(pages, dtype=jnp.int32).reshape(ROWS, layout.pages)
    return {name: jnp.full((ROWS,), value, jnp.int32), "cache": pk.KVCache(k=keys, v=keys + 1), "page_table": table}


def change(call, name, value, *at):
    """The call with one number of its index arrays changed, of the faulty row."""
    return call.replace(**{name: call.arrays[name].at[(FAULTY, *at)].set(value)})


def traced(implementation, *calls):
    """The results of calls of the same shapes."""
    tiles = pk.AttentionTiles(block_s=16, splits=2) if calls[0].function is pk.attention else None
    run = calls[0].jitted(implementation, tiles)
    return [run(**call.arrays) for call in calls]


def assert_one_row_is_nan(result, right):
    assert np.isnan(result[FAULTY]).all()
    others = np.arange(ROWS) != FAULTY
    assert_same_bits(result[others], right[others])
    assert np.isfinite(right).all()


QKV = {
    "a position beyond the table of rope": (qkv(CONTIGUOUS), "positions", 33, (), "rope"),
    "a position beyond the table, pages": (qkv(PAGED), "positions", 33, (), "rope"),
    "a position beyond the cache": (qkv(CONTIGUOUS), "positions", 48, (), "positions"),
    "no page": (qkv(PAGED), "page_table", -1, (1,), "page_table"),
    "a page beyond the cache": (qkv(PAGED), "page_table", 99, (1,), "page_table"),
    "no page and no rotation": (qkv(PAGED, rotary_dim=0), "page_table", -1, (1,), "page_table"),
    "no such sequence": (qkv(CONTIGUOUS), "sequence", ROWS, (), "sequence"),
    "no such sequence, pages": (qkv(PAGED), "sequence", -1, (), "sequence"),
}
SHORT = 30


def short_table(call):
    rope = call.arrays["rope"]
    return call if rope is None else call.replace(rope=tuple(table[:SHORT] for table in rope))


@both
@pytest.mark.parametrize("name", QKV)
def test_qkv(name, implementation):
    """Nothing but that row's own keys and values changes in the cache, and those only where they have a place."""
    right, argument, value, at, _ = QKV[name]
    right = short_table(right)
    wrong = change(right, argument, value, *at)
    (q, cache), (right_q, right_cache) = traced(implementation, wrong, right)
    assert_one_row_is_nan(q, right_q)
    own = FAULTY if right.arrays["page_table"] is None else right.arrays["page_table"][FAULTY]
    others = jnp.ones(len(cache.k), bool).at[own].set(False)
    assert_same_bits([x[others] for x in (cache.k, cache.v)], [x[others] for x in (right_cache.k, right_cache.v)])
    start = right.arrays["cache"]
    for after, before in ((cache.k, start.k), (cache.v, start.v)):
        changed = ~(np.asarray(after) == np.asarray(before))[~np.asarray(others)]
        assert np.isnan(np.asarray(after)[~np.asarray(others)][changed]).all()
        assert changed.any() == ("table" in name)


@pytest.mark.parametrize("implementation", ["xla", "interpret"])
@pytest.mark.parametrize("name", QKV)
def test_qkv_where_it_is_known(name, implementation):
    right, argument, value, at, named = QKV[name]
    with pytest.raises(ValueError, match=f"^{named}: expected") as error:
        change(short_table(right), argument, value, *at)(implementation)
    assert "\n" not in str(error.value)


ATTENTION = {
    "no page": (attention(PAGED), "page_table", -1, (1,), "page_table"),
    "no page, small pages": (attention(SMALL_PAGES), "page_table", -1, (3,), "page_table"),
    "a page beyond the cache": (attention(PAGED), "page_table", 99, (0,), "page_table"),
    "no page, soft cap": (attention(PAGED, soft_cap=2.0), "page_table", -1, (1,), "page_table"),
    "no page in the window": (attention(PAGED, window=6), "page_table", -1, (0,), "page_table"),
    "a length beyond the cache": (attention(PAGED), "lengths", 49, (), "lengths"),
    "a length beyond a contiguous cache": (attention(CONTIGUOUS, window=2), "lengths", 500, (), "lengths"),
    "no such sequence": (attention(CONTIGUOUS), "sequence", ROWS, (), "sequence"),
    "no such sequence, pages": (attention(PAGED), "sequence", -1, (), "sequence"),
}


@both
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, implementation):
    right, argument, value, at, _ = ATTENTION[name]
    wrong = change(right, argument, value, *at)
    assert_one_row_is_nan(*traced(implementation, wrong, right))


@pytest.mark.slow
@pytest.mark.parametrize("splits", [1, 4])
def test_attention_with_a_block_for_each_split_and_without_splits(splits):
    call = change(attention(PAGED), "page_table", -1, 1)
    tiles = pk.AttentionTiles(block_s=16, splits=splits)
    found = call.jitted("interpret", tiles)(**call.arrays)
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [False, True, False]
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_where_it_is_known(name):
    right, argument, value, at, named = ATTENTION[name]
    with pytest.raises(ValueError, match=f"^{named}: expected") as error:
        change(right, argument, value, *at)("xla")
    assert "\n" not in str(error.value)


@both
@pytest.mark.parametrize(
    "call, page",
    [(attention(PAGED), 2), (attention(PAGED, window=5), 0), (attention(SMALL_PAGES, window=5), 1)],
    ids=["beyond the length", "before the window", "before the window, small pages"],
)
def test_pages_that_do_not_count_may_be_missing(call, page, implementation):
    without = call.replace(page_table=call.arrays["page_table"].at[:, page].set(-1))
    tiles = pk.AttentionTiles(block_s=16, splits=2)
    assert_same_bits(without(implementation, tiles), call(implementation, tiles))


@both
def test_padding_has_no_fault(implementation):
    """A row at -1, of length 0, needs no page, writes nothing and sees nothing."""
    call = change(change(short_table(qkv(PAGED)), "positions", -1), "page_table", -1, slice(None))
    q, cache = call(implementation)
    assert np.isfinite(q).all()
    own = call.arrays["page_table"][FAULTY - 1]
    assert (
        not np.isnan(np.asarray(cache.k)).any()
        and (np.asarray(cache.k) != np.asarray(call.arrays["cache"].k))[own].any()
    )
    seen = change(change(attention(PAGED), "lengths", 0), "page_table", -1, slice(None))
    found = seen(implementation, pk.AttentionTiles(block_s=16, splits=2))
    assert not np.any(found[FAULTY]) and np.isfinite(found).all()


def test_rotate():
    x, rope = jnp.ones((2, 3, 8)), tuple(jnp.ones((5, 2)) for _ in range(2))
    with pytest.raises(ValueError, match=r"^rope: expected a row for each position up to 5, got 5 rows"):
        pk.rotate(x, jnp.array([0, 5]), rope)
    found = jax.jit(pk.rotate)(x, jnp.array([-1, 5]), rope)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1, :, :4]).all() and (found[1, :, 4:] == 1).all()


def test_a_row_of_two_positions_that_are_one():
    call = qkv(PAGED)
    with pytest.raises(ValueError, match=r"^positions: expected rows of different places, got position 20 of "):
        call("xla", sequence=jnp.zeros((ROWS,), jnp.int32))


@both
def test_a_weight_knows_how_much_of_a_head_rotates(implementation):
    """Without rotation, what is packed for another part of a head comes out in the same order."""
    heads = [inputs.Values(i).normal(24, n, 8, dtype="float32") for i, n in enumerate((4, 2, 2))]
    call = qkv(CONTIGUOUS, rotary_dim=0)
    whole, part = (call.replace(weight=pk.pack_qkv(*heads, rotary_dim=size)) for size in (None, 4))
    np.testing.assert_allclose(whole(implementation)[0], part(implementation)[0], rtol=1e-5, atol=1e-5)
    rope = tuple(jnp.ones((48, 4)) for _ in range(2))
    whole(implementation, rope=rope)
    with pytest.raises(ValueError, match=r"^rope: expected 2 columns, half the rotary_dim of the packed weight, got 4"):
        part(implementation, rope=rope)
