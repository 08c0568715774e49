"""What the server soak is told."""

import dataclasses

from experiments.bench.errors import UsageError
from experiments.bench.options import check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run.

    Attributes:
        clients: at a time. seconds: of their load. leaving: the share of streams that are left. cases: different ones.
        tokens: of a stream at most. one_token: requests of one token. slow_readers, half_open: connections.
        batch: sequences that the server runs at a time. restart: kill the server and start it again, with a cache of
            compiled programs that is empty at first; else it has the user's.
        timeout_s: within which a client must get its next token. seed: of the requests.
        results: the file that the record is appended to.
    """

    clients: int = 1000
    seconds: float = 60.0
    leaving: float = 0.2
    cases: int = 64
    tokens: int = 16
    one_token: int = 20000
    slow_readers: int = 8
    half_open: int = 1000
    batch: int = 8
    restart: bool = True
    timeout_s: float = 600.0
    seed: int = 0
    results: str = "out/server_soak-{device}.jsonl"

    def __post_init__(self):
        check_least(self, clients=1, cases=1, tokens=2, one_token=10, slow_readers=1, half_open=1, batch=1, seed=0)
        for name in ("seconds", "timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if not 0 <= self.leaving < 1:
            raise UsageError(f"leaving: expected 0 or more and less than 1, got {self.leaving}")
