"""A server of the small model as a process of its own, at a free port of this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

READY_S = 600.0
"""Seconds within which it must be ready, its programs compiled."""
IDLE_S = 30.0
"""Seconds within which all that clients left behind must be gone."""


class Server:
    """Started at once; left as a context, it is told to end.

    Args:
        arguments: of `python -m tokenspeed serve`. log: the file for what it says.
        cache: the folder for compiled programs; None: the user's.

    Attributes:
        url: without a path. ready_s: seconds from its start until it was ready. ready_cpu_s: of processors until then.

    Raises:
        RuntimeError: it ended, or was not ready within READY_S.
    """

    def __init__(self, arguments: Sequence[str], log: Path, cache: Path | None = None):
        environment = os.environ | ({} if cache is None else dict(XDG_CACHE_HOME=str(cache)))
        if cache is not None:
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        begun = time.perf_counter()
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tokenspeed", "serve", "--port=0", *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True, env=environment,
            )  # fmt: skip
        self._log = log
        try:
            self.url = self._address()
            self._until_ready(begun + READY_S)
        except BaseException:
            self.kill()
            raise
        self.ready_s = time.perf_counter() - begun
        times = psutil.Process(self._process.pid).cpu_times()
        self.ready_cpu_s = times.user + times.system

    def _address(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("Listening at "):
            raise RuntimeError(f"the server did not start: {self._last_line()}")
        return line.split()[-1].removesuffix("/v1")

    def _until_ready(self, end: float) -> None:
        while time.perf_counter() < end:
            try:
                if httpx2.get(f"{self.url}/ready", timeout=10).status_code == 200:
                    return
            except httpx2.TransportError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server has ended: {self._last_line()}") from None
            time.sleep(0.1)
        raise RuntimeError(f"the server was not ready within {READY_S:.0f} s")

    def _last_line(self) -> str:
        return (self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:200]

    def metrics(self) -> dict[str, float]:
        """Series by their names without the prefix; those with more labels added up."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx2.get(f"{self.url}/metrics", timeout=30).text):
            for sample in family.samples:
                name = sample.name.removeprefix("tokenspeed:")
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def busy(self) -> tuple[float, float, float]:
        """Samples under way, samples that wait, and the share of the pages that are in use."""
        found = self.metrics()
        return found["num_requests_running"], found["num_requests_waiting"], found["kv_cache_usage_perc"]

    def settled(self) -> tuple[float, float, float]:
        """As `busy`, once that is nothing; after IDLE_S what it is by then."""
        end = time.perf_counter() + IDLE_S
        while any(found := self.busy()) and time.perf_counter() < end:
            time.sleep(0.1)
        return found

    def files(self) -> int:
        """Open ones, sockets among them."""
        return psutil.Process(self._process.pid).num_fds()

    def files_down_to(self, most: int) -> int:
        """As `files`, once they are no more than `most`; after IDLE_S what they are by then."""
        end = time.perf_counter() + IDLE_S
        while (found := self.files()) > most and time.perf_counter() < end:
            time.sleep(0.1)
        return found

    def memory_bytes(self) -> int:
        """Resident."""
        return psutil.Process(self._process.pid).memory_info().rss

    def kill(self) -> None:
        """Without a warning."""
        self._process.kill()
        self._wait()

    def end(self) -> int:
        """Tells it to end; its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        status = self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
