"""Compiling apart from running, so that no time that is told is a compiler's."""

import time
from typing import Any

import jax


class Clock:
    """Seconds since it was made, less those that programs were compiled in.

    Attributes:
        compile_s: those that programs were compiled in.
    """

    def __init__(self):
        self._begun, self.compile_s = time.perf_counter(), 0.0

    def now(self) -> float:
        return time.perf_counter() - self._begun - self.compile_s


class Programs:
    """Compiles jitted functions before they are first called."""

    def __init__(self):
        self._compiled: set[Any] = set()

    def prepare(self, clock: Clock, program: Any, *arguments: Any, **static: Any) -> None:
        """Compiles `program` for these arguments, which stay as they are; at once where that was done before.

        Nothing may be running on the device: its work would not be on the clock.
        """
        leaves, tree = jax.tree.flatten(arguments)
        key = program, tree, tuple((x.shape, x.dtype) for x in leaves), tuple(sorted(static.items()))
        if key not in self._compiled:
            before = clock.now()
            program.lower(*arguments, **static).compile()  # a later call finds it
            clock.compile_s += clock.now() - before
            self._compiled.add(key)
