"""Compiling apart from running, so that no time that is told is a compiler's."""

import time
from collections.abc import Callable, Hashable
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
    """Compiles jitted functions before they are first called. Of one model: nothing is said of its weights."""

    def __init__(self):
        self._compiled: set[Any] = set()

    def prepare(
        self, clock: Clock, shapes: Hashable, program: Any, arguments: Callable[[], tuple], **static: Any
    ) -> None:
        """Compiles `program` for these arguments, which stay as they are; at once where that was done before.

        What is under way on the device is waited for before anything is compiled, since its work would not be on the
        clock.

        Args:
            clock: which stands still while something is compiled.
            shapes: what the shapes and dtypes of the arguments follow from: to look at hundreds of arrays at each call
                takes the host longer than to start the program.
            program: a jitted function.
            arguments: gives those of it, or `jax.ShapeDtypeStruct` in their place; called where it is compiled.
            static: those that are static.
        """
        key = program, shapes, tuple(sorted(static.items()))
        if key not in self._compiled:
            given = arguments()
            jax.block_until_ready(given)
            before = clock.now()
            program.lower(*given, **static).compile()  # a later call finds it
            clock.compile_s += clock.now() - before
            self._compiled.add(key)
