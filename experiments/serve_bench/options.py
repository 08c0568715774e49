"""What the serve benchmark is told: the fields of configs/serve.py, checked."""

import dataclasses
import re

from experiments.bench.errors import UsageError
from experiments.bench.options import check_least, check_name, check_some
from experiments.serve_bench.arrivals import ARRIVALS
from experiments.serve_bench.mixes import MIXES, Sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One load.

    Attributes:
        mix: of MIXES. rate: requests a second, of an open loop; concurrency: of a closed one; the other is None.
        repeat: from 0.
    """

    mix: str
    rate: float | None
    concurrency: int | None
    repeat: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; configs/serve.py says what each field means."""

    endpoints: tuple[str, ...]
    model: str
    api_key: str
    arrivals: str
    rates: tuple[float, ...]
    burst: int
    concurrency: tuple[int, ...]
    mixes: tuple[str, ...]
    seconds: float
    warm_s: float
    repeats: int
    ignore_eos: bool
    seed: int
    chat_words: int
    chat_tokens: int
    long_words: int
    long_tokens: int
    long_every_s: float
    slo_ttft_ms: float
    slo_itl_ms: float
    timeout_s: float
    results: str

    def __post_init__(self):
        check_name("arrivals", self.arrivals, ARRIVALS)
        check_some(self, "endpoints", "mixes", "concurrency" if self.arrivals == "closed" else "rates")
        for mix in self.mixes:
            check_name("mixes", mix, MIXES)
        for one in self.endpoints:
            if not re.fullmatch(r"[\w.-]+=https?://\S+", one):
                raise UsageError(f"endpoints: expected NAME=URL, got {one}")
        if len(self.urls) < len(self.endpoints):
            raise UsageError("endpoints: two have one name")
        check_least(
            self, burst=1, concurrency=1, repeats=1, seed=0, chat_words=1, chat_tokens=2, long_words=1, long_tokens=1
        )
        for name in ("seconds", "long_every_s", "slo_ttft_ms", "slo_itl_ms", "timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if any(not rate > 0 for rate in self.rates):
            raise UsageError(f"rates: expected more than 0, got {min(self.rates)}")
        if self.warm_s < 0:
            raise UsageError(f"warm_s: expected 0 or more, got {self.warm_s}")

    @property
    def urls(self) -> dict[str, str]:
        """By name."""
        return dict(one.split("=", 1) for one in self.endpoints)

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            chat_words=self.chat_words, chat_tokens=self.chat_tokens, long_words=self.long_words,
            long_tokens=self.long_tokens,
        )  # fmt: skip

    @property
    def cases(self) -> list[Case]:
        closed = self.arrivals == "closed"
        loads = [(None, most) for most in self.concurrency] if closed else [(rate, None) for rate in self.rates]
        return [
            Case(mix=mix, rate=rate, concurrency=most, repeat=repeat)
            for mix in self.mixes
            for rate, most in loads
            for repeat in range(self.repeats)
        ]
