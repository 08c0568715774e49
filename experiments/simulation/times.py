"""How long programs take: those of llama-3.1-8b in bfloat16 on one H200, at contexts of some 1100 tokens.

Steps are those of `experiments.decode` (RESULTS.md), with 0.15 ms for what the engine's do beside the model; chunks,
draws and the host's times are from the notes ("The engine", "Prefill").
"""

MOST_POSITIONS = 2048
"""Of a sequence: attention to more takes longer."""
STEP_MS = {1: 3.75, 4: 4.0, 8: 4.27, 16: 4.57, 32: 5.2, 64: 6.6, 128: 9.7, 256: 17.0}
"""By rows; of others as of the next more."""
BESIDE_MS = 0.15
CHUNK_MS = {16: 4.0, 64: 4.6, 128: 5.3, 256: 8.5, 512: 12.6, 1024: 23.9}
"""By tokens, of one sequence."""
TOGETHER = 0.975
"""Of these, each of several in one program."""
FIRST_MS = 0.4
HOST_MS = dict(chunk=2.2, first=0.9, steps=1.3)
"""To start a program."""


def step_s(rows: int) -> float:
    return (STEP_MS[min(size for size in STEP_MS if size >= rows)] + BESIDE_MS) / 1e3


def chunk_s(rows: int, tokens: int) -> float:
    one = CHUNK_MS[min(size for size in CHUNK_MS if size >= tokens)] / 1e3
    return one if rows == 1 else TOGETHER * rows * one
