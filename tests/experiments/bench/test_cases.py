"""Cases: what records have of them, and that they are made again from that."""

import pytest

from experiments.bench import cases
from experiments.bench.recorded import OPS


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("page_size", [0, 16])
def test_a_case_is_made_again_from_its_record(op, page_size, make_record):
    case = cases.make(op, "ragged", rows=3, context=80, dtype="f16", page_size=page_size)
    fields = case.fields()
    assert (fields["context"], fields["page_size"]) == ((80, page_size) if op == "attention" else (None, None))
    again = cases.of_record(make_record(**fields))
    assert again.fields() == fields and again.shape == case.shape


def test_pages_change_where_a_context_lies_and_not_what_is_read():
    """Pages of 32 have room for 96 positions, of which 80 count."""
    whole, paged = (cases.make("attention", "ragged", rows=3, context=80, page_size=size) for size in (0, 32))
    assert (whole.shape.context, whole.shape.page_size) == (80, 80)
    assert (paged.shape.context, paged.shape.page_size) == (96, 32)
    assert paged.cost == whole.cost and paged.xla.cost == whole.xla.cost
