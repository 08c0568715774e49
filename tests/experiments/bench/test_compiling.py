"""Compilations are counted, so that none is timed, and many programs are compiled at once."""

import threading

import jax
import numpy as np
import pytest

from experiments.bench.compiling import compile_all, counted


def test_compilations_are_counted():
    function = jax.jit(lambda x: x * 2.5)
    with counted() as seen:
        function(np.float32(1))
    assert any("backend_compile" in event for event in seen)
    with counted() as seen:
        function(np.float32(2))
    jax.jit(lambda x: x * 4.5)(np.float32(1))
    assert seen == [], "what is compiled already, and what is compiled afterwards"


def test_results_are_in_order_and_made_side_by_side():
    together = threading.Barrier(2, timeout=10)

    def thunk(number):
        return lambda: (together.wait(), number)[1]

    assert compile_all([thunk(0), thunk(1)], workers=2) == [0, 1]


def test_an_error_is_raised_and_what_has_not_begun_is_left():
    begun = []

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        compile_all([fails, *(lambda: begun.append(threading.Event().wait(0.05)) for _ in range(50))], workers=1)
    assert len(begun) < 50
