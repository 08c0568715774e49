"""What is done to the server, one after the other, and what must be true of it afterwards."""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx2
from tqdm import tqdm

from experiments.server_soak import load, sockets
from experiments.server_soak.client import Case, Stream, client_of
from experiments.server_soak.options import Options
from experiments.server_soak.process import Server
from experiments.throughput.client import percentile

GROWTH_BYTES = 64 << 20
"""Of a process that keeps nothing: allocators return memory late."""
OTHERS = 8
"""Clients that ask while others misbehave."""
SLOWED = 2.0
"""How much longer theirs may take then; the machine's own noise is less."""
SLOWED_MS = 50.0
"""And so much beside: of streams that take no time, noise is all."""
AT_ONCE = 32
"""Requests of one token at a time, at most."""
SPARE_FILES = 80
"""That a server may have open beside those it had: connections that clients keep, what is made at first use."""
SLOW_TOKENS = 60
"""Of a slow reader's stream."""


class Soak:
    """Runs the phases.

    Attributes:
        fields: of the record. problems: what was wrong, one line each.
    """

    def __init__(self, options: Options):
        self._o = options
        self._asked = load.cases(options.cases, options.tokens, options.seed)
        self._alone: dict[Case, Stream] = {}
        self.problems: list[str] = []
        self.fields: dict[str, Any] = dict(
            clients=options.clients, load_seconds=options.seconds, leaving=options.leaving, cases=options.cases,
            batch=options.batch, seed=options.seed,
        )  # fmt: skip

    def run(self, server: Server) -> None:
        """All that one life of a server goes through."""
        files = server.files()
        self.fields |= dict(ready_s=round(server.ready_s, 3), ready_cpu_s=round(server.ready_cpu_s, 3))
        asyncio.run(self._all(server))
        left = server.files_down_to(files + SPARE_FILES) - files - SPARE_FILES
        self._check(left <= 0, f"{left} sockets were not closed")
        self.fields |= dict(memory_bytes=server.memory_bytes())

    async def _all(self, server: Server) -> None:
        async with client_of(server.url, self._o.timeout_s) as client:
            self._alone = await load.alone(client, self._asked)
            self._check(all(one.finished for one in self._alone.values()), "a request alone was not answered")
            for phase in (self._crowd, self._overfull, self._slow_readers, self._half_open, self._one_token):
                name, begun = phase.__name__.strip("_"), time.perf_counter()
                await phase(server, client)
                print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
                running, waiting, pages = await asyncio.to_thread(server.settled)
                self._check(
                    not (running or waiting or pages),
                    f"after {name}: {running:g} run, {waiting:g} wait, {pages:.1%} of the pages are in use",
                )

    async def _crowd(self, server: Server, client: httpx2.AsyncClient) -> None:
        """Clients that stream and leave, for the load's seconds."""
        o, sizes, over = self._o, [], asyncio.Event()

        async def watch() -> None:
            while not over.is_set():
                sizes.append(server.memory_bytes())
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        begun = time.perf_counter()
        found = await load.closed_loop(client, self._asked, o.clients, o.seconds, o.leaving, o.seed)
        seconds = time.perf_counter() - begun
        over.set()
        await watching
        self._judge("the load", found)
        ended = [one for one in found if one.finished]
        quarter = len(sizes) // 4
        grown = int(statistics.median(sizes[-quarter - 1 :]) - statistics.median(sizes[quarter : 2 * quarter + 1]))
        self._check(grown <= GROWTH_BYTES, f"memory grew by {grown} bytes under the load")
        self.fields |= dict(
            requests=len(found), finished=len(ended), left=sum(one.left for one in found),
            rejected=sum(one.rejected for one in found), errors=sum(bool(one.error) for one in found),
            seconds=round(seconds, 3), requests_per_s=round(len(ended) / seconds, 3),
            output_tokens_per_s=round(sum(len(one.arrivals) for one in found) / seconds, 3),
            ttft_ms_p50=percentile([one.ttft_ms for one in ended], 50),
            ttft_ms_p99=percentile([one.ttft_ms for one in ended], 99),
            same_as_alone=sum(self._is_same(one) for one in ended), load_grew_bytes=grown,
        )  # fmt: skip

    async def _overfull(self, _: Server, client: httpx2.AsyncClient) -> None:
        """More at once than the server takes."""
        found = await load.at_once(client, self._asked, self._o.clients + max(OTHERS, self._o.clients // 4))
        self._judge("the full queue", found)
        rejected = [one for one in found if one.rejected]
        self._check(bool(rejected), "a full queue rejected nothing")
        self._check(
            all(one.retry.isdecimal() and int(one.retry) > 0 for one in rejected), "a 429 was without Retry-After"
        )
        self.fields |= dict(overfull_requests=len(found), overfull_rejected=len(rejected))

    async def _slow_readers(self, server: Server, client: httpx2.AsyncClient) -> None:
        """Beside readers of the same streams that are not slow: those take a share of the steps too."""
        o, found = self._o, []
        for pause_s in (0.0, sockets.SLOW_S):
            async with sockets.readers(server.url, o.slow_readers, SLOW_TOKENS, pause_s):
                found.append(await self._others("beside slow readers", client))
            await asyncio.to_thread(server.settled)
        fast, slow = found
        self._check(slow <= SLOWED * fast + SLOWED_MS, f"slow readers slowed others, {fast} to {slow} ms")
        self.fields |= dict(
            slow_readers=o.slow_readers, others_beside_fast_readers_ms_p50=fast, others_beside_slow_readers_ms_p50=slow
        )

    async def _half_open(self, server: Server, client: httpx2.AsyncClient) -> None:
        """And without them, for comparison."""
        files, before = server.files(), await self._others("alone", client)
        async with sockets.half_open(server.url, self._o.half_open) as opened:
            during = await self._others("beside half-open connections", client)
            held = sum(map(sockets.is_open, opened))
        left = await asyncio.to_thread(server.files_down_to, files + SPARE_FILES) - files
        self._check(left <= SPARE_FILES, f"{left} half-open connections were not closed")
        self._check(during <= SLOWED * before + SLOWED_MS, f"half-open ones slowed others, {before} to {during} ms")
        self.fields |= dict(
            half_open=self._o.half_open, half_open_held=held, others_ms_p50=before,
            others_beside_half_open_ms_p50=during,
        )  # fmt: skip

    async def _others(self, when: str, client: httpx2.AsyncClient) -> float:
        """Median milliseconds of the streams of clients that behave."""
        seconds = max(1.0, self._o.seconds / 6)
        found = await load.closed_loop(client, self._asked, min(OTHERS, self._o.clients), seconds, 0.0, self._o.seed)
        self._judge(when, found)
        return percentile([one.whole_ms for one in found if one.finished], 50) or 0.0

    async def _one_token(self, server: Server, client: httpx2.AsyncClient) -> None:
        """Memory must be what it was after a tenth of the requests, and the last ones as fast as the first."""
        o, sizes, times = self._o, [], []
        marks = {o.one_token * tenths // 10 for tenths in (1, 4, 7)}
        with tqdm(total=o.one_token, unit="request", desc="one token", mininterval=5) as bar:

            def tick(number: int) -> None:
                bar.update(number - bar.n)
                if number in marks:
                    sizes.append(server.memory_bytes())
                    times.append(time.perf_counter())

            begun = time.perf_counter()
            wrong = await load.one_token_each(client, o.one_token, min(AT_ONCE, o.clients), tick)
            end = time.perf_counter()
        grown = server.memory_bytes() - sizes[0]
        early, late = times[min(1, len(times) - 1)] - times[0], end - times[-1]
        self._check(not wrong, f"{len(wrong)} requests of one token failed: {wrong[:1]}")
        self._check(grown <= GROWTH_BYTES, f"memory grew by {grown} bytes over requests of one token")
        self._check(late <= SLOWED * early + 1, f"requests of one token became slower, {early:.1f} to {late:.1f} s")
        self.fields |= dict(
            one_token=o.one_token, one_token_per_s=round(o.one_token / (end - begun), 3), one_token_grew_bytes=grown,
            one_token_early_s=round(early, 3), one_token_late_s=round(late, 3),
        )  # fmt: skip

    def killed(self, server: Server) -> None:
        """Under a load, whose clients must be told."""

        async def killing() -> list[Stream]:
            async with client_of(server.url, self._o.timeout_s) as client:
                streams = asyncio.create_task(load.at_once(client, self._asked, self._o.clients))
                while not any(server.busy()[:1]):
                    await asyncio.sleep(0.05)
                server.kill()
                return await streams

        found = asyncio.run(killing())
        told = sum(bool(one.error) for one in found)
        self._check(told > 0, "no client was told that the server was killed")
        self._check(all(one.error or one.finished for one in found), "a client took half an answer for a whole one")
        self.fields |= dict(killed_streams=told)

    def restarted(self, server: Server) -> None:
        """With the programs of its life before, and the same answers."""

        async def asking() -> list[Stream]:
            async with client_of(server.url, self._o.timeout_s) as client:
                return await load.at_once(client, self._asked, len(self._asked))

        self._judge("after the restart", asyncio.run(asking()))
        first, again = self.fields["ready_cpu_s"], round(server.ready_cpu_s, 3)
        # What else the machine does moves seconds by more than the cache of programs.
        self._check(again < first, f"the second start took {again} s of processors, the first {first} s")
        self.fields |= dict(ready_again_s=round(server.ready_s, 3), ready_again_cpu_s=again)

    def _judge(self, when: str, found: Sequence[Stream]) -> None:
        errors = [one.error for one in found if one.error]
        self._check(not errors, f"{when}: {len(errors)} of {len(found)} streams failed: {errors[:1]}")
        other = sum(one.finished and not self._is_same(one) for one in found)
        self._check(not other, f"{when}: {other} streams are not those of the requests alone")
        self._check(any(one.finished for one in found), f"{when}: no stream ended")

    def _is_same(self, one: Stream) -> bool:
        other = self._alone[one.case]
        return (one.text, one.reason, len(one.arrivals)) == (other.text, other.reason, len(other.arrivals))

    def _check(self, fine: bool, problem: str) -> None:
        if not fine:
            self.problems.append(problem)
