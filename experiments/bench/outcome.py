"""What a case of a benchmark came to: whether its figures count."""

import dataclasses


@dataclasses.dataclass
class Outcome:
    """A case's figures are in a class of its own, derived from this.

    Attributes:
        voids: why they do not count. failure: why there are none.
    """

    voids: list[str] = dataclasses.field(default_factory=list)
    failure: str = ""

    @property
    def status(self) -> str:
        """'ok', or why there are no figures, or why they do not count."""
        if self.failure:
            return self.failure
        return f"void: {'; '.join(self.voids)}" if self.voids else "ok"

    def void(self, reason: str) -> None:
        if reason not in self.voids:
            self.voids.append(reason)
