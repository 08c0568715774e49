"""What the serve benchmark is told: the fields of configs/serve.py, checked."""

import dataclasses
import re
from typing import Any

from experiments.bench.errors import UsageError
from experiments.bench.options import check_least, check_name, check_some
from experiments.serve_bench.arrivals import ARRIVALS
from experiments.serve_bench.figures import Bounds
from experiments.serve_bench.mixes import MIXES, Sizes
from experiments.serve_bench.texts import Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One load.

    Attributes:
        mix: of MIXES. rate: requests a second, of an open loop; concurrency: of a closed one; the other is None.
        repeat: from 0. turned: whether the endpoints' turns are the other way round.
    """

    mix: str
    rate: float | None
    concurrency: int | None
    repeat: int
    turned: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; configs/serve.py says what each field means."""

    endpoints: tuple[str, ...]
    commands: tuple[str, ...]
    ready_s: float
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
    continuous_usage: bool
    seed: int
    tokenizer: str
    spread: float
    chat_input: int
    chat_output: int
    long_input: int
    long_output: int
    long_every_s: float
    slo_ttft_ms: float
    slo_tpot_ms: float
    most_late_ms: float
    timeout_s: float
    results: str
    plots: str

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
        for one in self.commands:
            name, _, command = one.partition("=")
            if name not in self.urls or not command.strip():
                raise UsageError(f"commands: expected NAME=COMMAND, of {' or '.join(self.urls)}, got {one}")
        if len(self.servers) < len(self.commands):
            raise UsageError("commands: two have one name")
        check_least(
            self, burst=1, concurrency=1, repeats=1, warm_s=0, seed=0, spread=0, chat_input=1, chat_output=2,
            long_input=1, long_output=1,
        )  # fmt: skip
        for name in ("seconds", "ready_s", "long_every_s", "slo_ttft_ms", "slo_tpot_ms", "most_late_ms", "timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if any(not rate > 0 for rate in self.rates):
            raise UsageError(f"rates: expected more than 0, got {min(self.rates)}")

    @property
    def urls(self) -> dict[str, str]:
        """By name."""
        return dict(one.split("=", 1) for one in self.endpoints)

    @property
    def servers(self) -> dict[str, str]:
        """The commands by the endpoints' names."""
        return dict(one.split("=", 1) for one in self.commands)

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return dict(authorization=f"Bearer {self.api_key}") if self.api_key else {}

    @property
    def bounds(self) -> Bounds:
        return Bounds(ttft_ms=self.slo_ttft_ms, tpot_ms=self.slo_tpot_ms, late_ms=self.most_late_ms)

    @property
    def extra(self) -> dict[str, Any]:
        """Fields of a request's body beside those of every one."""
        usage = dict(include_usage=True) | (dict(continuous_usage_stats=True) if self.continuous_usage else {})
        return dict(stream_options=usage) | (dict(ignore_eos=True) if self.ignore_eos else {})

    def sizes(self, text: Text) -> Sizes:
        return Sizes(
            text=text, spread=self.spread, chat_input=self.chat_input, chat_output=self.chat_output,
            long_input=self.long_input, long_output=self.long_output,
        )  # fmt: skip

    @property
    def cases(self) -> list[Case]:
        """By load; chats without long prompts stand before those with any, of the mix 'both'."""
        closed = self.arrivals == "closed"
        loads = [(None, most) for most in self.concurrency] if closed else [(float(rate), None) for rate in self.rates]
        mixes = [mix for mix in MIXES if mix in self.mixes or (mix == "chat" and "both" in self.mixes)]
        return [
            Case(mix=mix, rate=rate, concurrency=most, repeat=repeat, turned=(i + j + repeat) % 2 == 1)
            for repeat in range(self.repeats)
            for i, (rate, most) in enumerate(loads)
            for j, mix in enumerate(mixes)
        ]
