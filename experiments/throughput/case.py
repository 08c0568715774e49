"""What a case is, what it gives, and how it is run on an engine that serves."""

import asyncio
import dataclasses
from typing import Any, Protocol

from experiments.bench.compiling import counted
from experiments.bench.device import reason_of
from experiments.bench.outcome import Outcome
from experiments.prefill.found import check_counting
from tokenspeed.async_engine import AsyncEngine


@dataclasses.dataclass
class Found(Outcome):
    """What a case gave.

    Attributes:
        fields: of its record.
    """

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


class Case(Protocol):
    """What one record is about."""

    @property
    def kind(self) -> str:
        """Of its record."""
        ...

    @property
    def fields(self) -> dict[str, Any]:
        """That say which case it is."""
        ...

    @property
    def rows(self) -> int:
        """Sequences that it has under way at a time."""
        ...

    @property
    def positions(self) -> int:
        """That its longest sequence needs."""
        ...

    async def run(self, engine: AsyncEngine, vocabulary: int, found: Found) -> None:
        """Runs it, what it gives into `found`."""
        ...


def measure(engine: AsyncEngine, vocabulary: int, case: Case) -> Found:
    """Void where anything was compiled, the case's warm run included."""
    found = Found()
    try:
        check_counting()
        with counted() as compiled:
            asyncio.run(case.run(engine, vocabulary, found))
        found.fields["compiled_after_ready"] = len(compiled)
        if compiled:
            found.void("something was compiled after the engine was ready")
    except Exception as error:
        found.failure = f"running failed: {reason_of(error)}"
        found.fields = {}
    return found
