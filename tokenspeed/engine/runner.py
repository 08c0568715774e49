"""Runner: the batch on the device, and its programs, each of a few shapes, compiled apart from running."""

import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pallas_kernels import resolve_implementation
from tokenspeed.engine import batch as batches
from tokenspeed.engine.batch import CHUNK_COLUMNS, DECODE_COLUMNS, NOBODY
from tokenspeed.engine.generation import Drawn, Weights
from tokenspeed.engine.kinds import FULL, KINDS, Kind
from tokenspeed.engine.shapes import Shapes
from tokenspeed.models.decoder import Llama
from tokenspeed.models.kv_dtypes import KVDtypes
from tokenspeed.models.kv_scales import scales_for
from tokenspeed.sampling.sample import Logprobs
from tokenspeed.sampling.state import SamplingRows, words_of

_jit = functools.partial(jax.jit, donate_argnums=1)
PROGRAMS: dict[str, Any] = dict(
    tables=jax.jit(batches.write_tables, donate_argnums=0),
    chunk=_jit(batches.chunk, static_argnames=("length", "behind", "prefill_backend", "implementation")),
    score=_jit(batches.score, static_argnames=("length", "behind", "prefill_backend", "implementation")),
    first=_jit(batches.first, static_argnames=("plan", "logprobs", "implementation")),
    steps=_jit(batches.steps, static_argnames=("count", "capacity", "plan", "logprobs", "implementation")),
)


class NotCompiled(RuntimeError):
    """A program was asked for that is not among those that were compiled, and no more may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of what a runner keeps on the device.

    Attributes:
        pages, page_size: of the pool. slots: sequences that run at a time. max_context: positions of a sequence.
    """

    pages: int
    page_size: int
    slots: int
    max_context: int

    @property
    def pages_each(self) -> int:
        """Of the longest sequence."""
        return -(-self.max_context // self.page_size)


class Program(NamedTuple):
    """Which of PROGRAMS, of how many rows, and its static arguments."""

    name: str
    rows: int = 1
    kind: Kind | None = None
    length: int = 0
    behind: int = 0
    steps: int = 0
    capacity: int = 0

    def __str__(self) -> str:
        if self.name == "chunk":
            return f"chunk {self.rows} x {self.length} behind {self.behind}"
        kind = "" if self.kind is None else f" of kind {KINDS.index(self.kind)}"
        return f"{self.name} of {self.rows}{kind}" + (f", {self.steps} at a time" if self.steps > 1 else "")


class ChunkRow(NamedTuple):
    """The next tokens of a slot's sequence, and where all of it is.

    Attributes:
        slot: of the batch. start: the position of the first token. tokens: one or more.
        pages: of the sequence, all of them. words: of `SamplingRows`. tables: whether the slot has tables of its own.
        follows: whether the slot had tokens of the sequence before.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    pages: Sequence[int]
    words: np.ndarray
    tables: bool
    follows: bool = False


class Runner:
    """A model, a batch of slots over a pool of pages, and how a step of theirs is started.

    Args:
        model: the decoder. sizes: of the batch. shapes: of the programs.
        kv: what keys and values are stored in; None for the model's dtype.
        implementation, prefill_backend: of the kernels and of prefill's attention, by name.

    Attributes:
        config, dtype: of the model. kv: what keys and values are stored in.
        compile_s: seconds in which programs were compiled. closed: whether none may be compiled any more.
    """

    def __init__(
        self, model: Llama, sizes: Sizes, shapes: Shapes, *, kv: KVDtypes | None = None, implementation: str,
        prefill_backend: str,
    ):  # fmt: skip
        self.sizes, self.shapes = sizes, shapes
        self.compile_s, self.closed = 0.0, False
        self.config, self.dtype, self.kv = model.config, str(model.dtype), kv or KVDtypes.of(model.dtype)
        self._weights, self._rope = Weights.of(model), model.rope_tables(sizes.max_context)
        self._kernels = dict(implementation=implementation)
        self._prefill = dict(implementation=implementation, prefill_backend=prefill_backend)
        self._compiled: dict[Program, Any] = {}
        make = functools.partial(
            batches.empty, model.config, self.kv, pages=sizes.pages, page_size=sizes.page_size, slots=sizes.slots,
            pages_each=sizes.pages_each, plan=FULL.plan,
        )  # fmt: skip
        begun = time.perf_counter()
        self.batch = jax.jit(make)(scales_for(model, self.kv))
        self.compile_s += time.perf_counter() - begun
        self._shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.batch)

    @property
    def programs(self) -> int:
        """How many are compiled."""
        return len(self._compiled)

    def write_tables(self, slot: int, rows: SamplingRows) -> None:
        """Gives a slot the tables of its sequence, `rows` of one row."""
        self.batch = self._program(Program("tables"))(self.batch, np.int32(slot), rows)

    def chunk(self, parts: Sequence[ChunkRow], shape: tuple[int, int]) -> jax.Array:
        """Puts the next tokens of some slots' sequences into the cache, by a program of a shape of `Shapes.chunks`.

        Returns:
            A number of no meaning, which is there when they are.
        """
        rows, length = shape
        packed = np.zeros((rows, self._columns(length)), np.int32)
        packed[:, CHUNK_COLUMNS.index("slot")] = NOBODY
        for row, part in zip(packed, parts):
            self._pack(row, part)
        program = self._program(self.chunk_program(shape, max(part.start for part in parts)))
        self.batch, done = program(self._weights, self.batch, packed, self._rope)
        return done

    def score(self, part: ChunkRow, following: Sequence[int]) -> Logprobs:
        """As `chunk`, of one part of at most `Shapes.scored` tokens; how likely the tokens that follow each are.

        Args:
            following: of each of its tokens; there may be one less than there are tokens.
        """
        length = self.shapes.scored
        packed = np.zeros((1, self._columns(length) + length), np.int32)
        self._pack(packed[0], part)
        packed[0, -length : len(following) - length or None] = following
        program = self._program(self.score_program())
        self.batch, found = program(self._weights, self.batch, packed, self._rope)
        return found

    def first(self, rows: Sequence[tuple[int, ...]], kind: Kind) -> Drawn:
        """Starts the draw of the tokens that follow prompts; rows as in `batch.steps`."""
        kind, count = self.shapes.first_for(kind, len(rows))
        program, packed = self._program(Program("first", count, kind)), self._packed(rows, count)
        self.batch, drawn = program(self._weights, self.batch, packed)
        return drawn

    def steps(self, rows: Sequence[tuple[int, ...]], steps: int, kind: Kind) -> Drawn:
        """Starts `steps` steps of decode, as many as there is a program for; rows as in `batch.steps`."""
        shape = self.shapes.decode_for(kind, len(rows), steps)
        if shape[2] != steps:
            raise ValueError(f"steps: expected {shape[2]} of {len(rows)} rows, got {steps}")
        program = self._program(self.steps_program(shape, max(position for _, position, *_ in rows) + steps))
        self.batch, drawn = program(self._weights, self.batch, self._packed(rows, shape[1]), self._rope)
        return drawn

    def chunk_program(self, shape: tuple[int, int], start: int) -> Program:
        """Of `Shapes.chunks`, whose chunks begin at `start` at the farthest."""
        few = batches.takes_decode_kernels(*shape, **self._kernels)
        return Program("chunk", shape[0], length=shape[1], behind=0 if few else self.shapes.behind_for(start))

    def score_program(self) -> Program:
        """It is asked for so rarely that there is one, for wherever a prompt's tokens begin."""
        return self.chunk_program((1, self.shapes.scored), self.sizes.max_context)._replace(name="score")

    def steps_program(self, shape: tuple[Kind, int, int], positions: int) -> Program:
        """Of `Shapes.decode`, for so many positions at most. The kernels of a GPU look at lengths alone."""
        kind, rows, steps = shape
        capacity = self.sizes.max_context
        if resolve_implementation(self._kernels["implementation"]) == "xla":
            capacity = self.shapes.behind_for(min(positions, capacity))
        return Program("steps", rows, kind, steps=steps, capacity=capacity)

    def settle(self) -> bool:
        """Waits for the device: a process that ended before would be aborted. Whether nothing of its work failed."""
        try:
            if not self.batch.token.is_deleted():  # all of a batch is of one call
                self.batch.token.block_until_ready()
        except jax.errors.JaxRuntimeError:  # of a computation that failed, which was told
            return False
        return True

    def all_programs(self) -> list[Program]:
        """Those that a step of any work may need."""
        shapes, far = self.shapes, (*self.shapes.behind, self.sizes.max_context)
        return list(
            dict.fromkeys(
                [
                    Program("tables"),
                    *(self.chunk_program(shape, start) for shape in shapes.chunks for start in far),
                    self.score_program(),
                    *(Program("first", rows, kind) for kind, rows in shapes.first),
                    *(self.steps_program(shape, positions) for shape in shapes.decode for positions in far[1:]),
                ]
            )
        )

    def prepare(self, programs: Iterable[Program], *, workers: int = 0, progress: bool = False) -> float:
        """Compiles programs, several at a time, and runs each of them on no rows; the seconds that it took.

        They are traced and lowered one after the other: it is Python, and threads would at times trace a function twice
        that programs share, whose module JAX's persistent cache would then not know. A GPU records its launches at the
        first run. When it compiles one, XLA drops what it has recorded of others, so all are compiled before any is
        run.
        """
        begun = time.perf_counter()
        if not (new := [program for program in dict.fromkeys(programs) if program not in self._compiled]):
            return 0.0
        workers = workers or len(os.sched_getaffinity(0))
        bar = tqdm(total=len(new), unit="program", desc="compiling", disable=not progress)
        with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
            compiling = {}
            for program in new:
                compiling[program] = pool.submit(self._lowered(program).compile)
                compiling[program].add_done_callback(lambda _: bar.update())
            self._compiled |= {program: one.result() for program, one in compiling.items()}
        for program in new:
            self._run_on_nobody(program)
        self.settle()
        self.compile_s += time.perf_counter() - begun
        return time.perf_counter() - begun

    def _program(self, program: Program) -> Any:
        found = self._compiled.get(program)
        if found is None:
            if self.closed:
                raise NotCompiled(f"{program}: expected one of the {len(self._compiled)} programs that are compiled")
            self.settle()  # its work would not be on the clock
            begun = time.perf_counter()
            found = self._compiled[program] = self._lowered(program).compile()
            self.compile_s += time.perf_counter() - begun
        return found

    def _lowered(self, program: Program) -> Any:
        arguments, static = self._arguments(program, jax.ShapeDtypeStruct)
        return PROGRAMS[program.name].lower(*arguments, **static)

    def _run_on_nobody(self, program: Program) -> None:
        arguments, _ = self._arguments(program, self._made)
        if program.name == "tables":  # past the last slot nothing is written
            arguments = self.batch, np.int32(self.sizes.slots), arguments[2]
        found = self._compiled[program](*arguments)
        self.batch = found if program.name == "tables" else found[0]

    def _made(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.full(shape, NOBODY).astype(dtype)

    def _arguments(self, program: Program, rows: Any) -> tuple[tuple, dict[str, Any]]:
        """Those of a program, of `rows(shape, dtype)`, and the static ones."""
        batch = self._shape if rows is jax.ShapeDtypeStruct else self.batch
        if program.name == "tables":
            c, plan = self.config.vocab_size, FULL.plan
            tables = SamplingRows(
                words=rows((1, words_of(plan)), jnp.uint32), bias=rows((1, c), jnp.float32),
                counts=rows((1, c), jnp.int32), prompted=rows((1, c), jnp.bool), plan=plan,
            )  # fmt: skip
            return (batch, rows((), jnp.int32), tables), {}
        if program.name in ("chunk", "score"):
            columns = self._columns(program.length) + (program.length if program.name == "score" else 0)
            static = dict(length=program.length, behind=program.behind, **self._prefill)
            return (self._weights, batch, rows((program.rows, columns), jnp.int32), self._rope), static
        assert program.kind is not None
        packed = rows((program.rows, len(DECODE_COLUMNS)), jnp.int32)
        static = dict(plan=program.kind.plan, logprobs=program.kind.logprobs, **self._kernels)
        if program.name == "first":
            return (self._weights, batch, packed), static
        return (self._weights, batch, packed, self._rope), static | dict(count=program.steps, capacity=program.capacity)

    def _columns(self, length: int) -> int:
        """Of a row of `batch.prefill`."""
        return len(CHUNK_COLUMNS) + words_of(FULL.plan) + self.sizes.pages_each + length

    def _pack(self, row: np.ndarray, part: ChunkRow) -> None:
        ends = np.cumsum([len(CHUNK_COLUMNS), len(part.words), self.sizes.pages_each])
        columns, words, table, tokens = np.split(row, ends)
        columns[:] = part.slot, part.start, len(part.tokens), part.tables, part.follows
        words[:] = part.words.view(np.int32)
        table[: len(part.pages)], table[len(part.pages) :] = part.pages, -1
        tokens[: len(part.tokens)] = part.tokens

    def _packed(self, rows: Sequence[tuple[int, ...]], count: int) -> np.ndarray:
        packed = np.full((count, len(DECODE_COLUMNS)), NOBODY, np.int32)
        packed[: len(rows)] = rows
        return packed
