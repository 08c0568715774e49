"""What the benchmark of accuracy is told."""

import dataclasses

from experiments.accuracy.formats import DEFAULT, HEADS
from experiments.bench.errors import UsageError
from experiments.bench.formats import parsed
from experiments.bench.options import check_least, check_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare.

    Attributes:
        model: a checkpoint folder, or 'tiny'. reference: that of the unquantised model, where `model` is quantised.
        formats: int8, fp8 or int4, with -gN groups of N inputs share a scale, with -asym there are zero points; ()
            for `formats.DEFAULT`.
        head: of a model that is not tied: int8, none, same as the projections; '' for int8 with int4 and none else.
        text: a file; '' for made-up stories. tokens: positions, at least. length: of a sequence, at most; both are
            rounded to whole sequences.
        results: the file that records are appended to.
    """

    model: str = "tiny"
    reference: str = ""
    formats: tuple[str, ...] = ()
    head: str = ""
    text: str = ""
    tokens: int = 4096
    length: int = 512
    results: str = "out/accuracy-{device}.jsonl"

    def __post_init__(self):
        for name in self.formats:
            parsed(name)
        if self.head:
            check_name("head", self.head, HEADS)
        check_least(self, tokens=1, length=2)
        if not self.model:
            raise UsageError("model: expected the folder of a checkpoint, or tiny")
        if self.reference:
            for field in ("formats", "head"):
                if getattr(self, field):
                    raise UsageError(f"{field}: expected none, since the model is quantised already, as reference says")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The formats to try."""
        return tuple(dict.fromkeys(self.formats)) or DEFAULT
