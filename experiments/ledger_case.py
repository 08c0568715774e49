"""The decode step with one lever left out at a time: its programs, and how far its logits are from the truth."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments import oracle
from experiments.decode_loop import Decoder, Workload
from experiments.gpu import compile_all
from experiments.levers import Lever
from tokenspeed import decode


class Levered(Workload):
    """A workload whose programs are the step without a lever, by the lever's name."""

    def __init__(self, decoder: Decoder, chosen: Sequence[Lever], *, batch: int, context: int, steps: int):
        super().__init__(decoder, batch=batch, context=context, steps=steps)
        self._levers = {lever.name: lever for lever in chosen}

    def compiled(self, implementation: str, options: dict[str, Any] | None = None) -> Callable:
        lever = self._levers[implementation]
        steps = 1 if lever.host_loop else self.steps
        with lever.applied():
            lowered = self.lowered(steps=steps, implementation=lever.implementation, kernels=lever.kernels)
        program = lowered.compile(compiler_options=(options or {}) | lever.compiler_options or None)
        return functools.partial(_from_the_host, program, self.steps) if lever.host_loop else program

    def logits(self, lever: Lever) -> Callable:
        """The program (weights, state, rope) -> logits float32 [B, V] after one step."""

        def run(weights, state, rope):
            model = self.decoder.model(weights)
            x, _, _ = decode.decode_step(
                model, state.caches, state.token[:, None], state.position[:, None], rope, counters=state.counters,
                implementation=lever.implementation, kernels=lever.kernels,
            )  # fmt: skip
            return decode.logits(model, x, lever.implementation, lever.kernels)

        state = jax.eval_shape(functools.partial(self.fresh, 0))
        with lever.applied():
            return jax.jit(run).lower(self.decoder.weights, state, self.rope).compile()


def _from_the_host(program: Callable, steps: int, weights, state, rope):
    """`steps` calls of a program of one step, each token copied to the host before the next."""
    tokens, logits = [], None
    for _ in range(steps):
        state, token, logits = program(weights, state, rope)
        tokens.append(np.asarray(token)[0])
    return state, np.stack(tokens), logits


class Drift:
    """How far the logits of one step are from those in float64, over a few sequences.

    Levers that trace the same kernels share an answer: some change only how a program is run.
    """

    def __init__(self, workload: Levered, levers: Sequence[Lever], sequences: int):
        self.workload, self.sequences = workload, sequences
        model = workload.decoder.model(workload.decoder.weights)
        states = map(workload.fresh, range(sequences))
        self._truth = np.stack([oracle.logits(model, s.caches, s.token, s.position) for s in states])
        different = {_traced(lever): lever for lever in levers}
        programs = compile_all([functools.partial(workload.logits, lever) for lever in different.values()], 0)
        self._known = dict(zip(different, map(self._compared, programs), strict=True))

    def of(self, lever: Lever) -> dict[str, float]:
        """RMS of the difference over RMS of the logits, the largest difference, and the mean divergence (KL)."""
        return self._known[_traced(lever)]

    def _compared(self, program: Callable) -> dict[str, float]:
        weights, rope = self.workload.decoder.weights, self.workload.rope
        found = [program(weights, self.workload.fresh(i), rope) for i in range(self.sequences)]
        return compared(np.stack([np.asarray(logits, np.float64) for logits in found]), self._truth)


def _traced(lever: Lever) -> Any:
    """What the kernels of a lever's step depend on."""
    return lever.implementation, id(lever.kernels), lever.left_out


def compared(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of logits [..., V] and the truth, in float64."""
    difference, ours, true = logits - truth, _log_softmax(logits), _log_softmax(truth)
    return dict(
        drift=float(np.sqrt(np.mean(difference**2) / np.mean(truth**2))),
        drift_max=float(np.abs(difference).max()),
        drift_kl=float((np.exp(true) * (true - ours)).sum(-1).mean()),
    )


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
