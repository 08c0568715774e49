"""The decode step with one thing left out at a time: its programs, and how far its logits are from the truth."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import pallas_kernels as pk
from experiments.ablation import oracle
from experiments.ablation.ablations import Ablation
from experiments.bench.compiling import compile_all
from experiments.bench.numerics import divergence, log_softmax
from experiments.bench.workload import Decoder, Workload
from tokenspeed.engine import decode
from tokenspeed.engine.generation import Drawn


class AblatedWorkload(Workload):
    """A workload whose programs are the step without something, by the ablation's name."""

    def __init__(self, decoder: Decoder, chosen: Sequence[Ablation], *, batch: int, context: int, steps: int):
        super().__init__(decoder, batch=batch, context=context, steps=steps)
        self._ablations = {one.name: one for one in chosen}

    def compiled(self, implementation: str, options: dict[str, Any] | None = None) -> Callable:
        ablation = self._ablations[implementation]
        steps = 1 if ablation.host_loop else self.steps
        with ablation.applied():
            lowered = self.lowered(steps=steps, **_how(ablation))
        program = lowered.compile(compiler_options=(options or {}) | ablation.compiler_options or None)
        return functools.partial(_from_the_host, program, self.steps) if ablation.host_loop else program

    def logits(self, ablation: Ablation) -> Callable:
        """The program (weights, state, rope) -> logits float32 [B, V] after one step."""

        def run(weights, state, rope):
            how = _how(ablation)
            x, _, _ = decode.decode_step(
                weights.model, state.caches, state.token[:, None], state.position[:, None], rope,
                counters=state.counters, **how,
            )  # fmt: skip
            return decode.logits(weights.model, x, how["implementation"], how["kernels"])

        state = jax.eval_shape(functools.partial(self.fresh, 0))
        with ablation.applied():
            return jax.jit(run).lower(self.decoder.weights, state, self.rope).compile()


def _how(ablation: Ablation) -> dict[str, Any]:
    return dict(
        implementation=ablation.implementation,
        deferred_norm=ablation.deferred_norm,
        kernels=ablation.kernels(pk.current_device()),
    )


def _from_the_host(program: Callable, steps: int, weights, state, rope):
    """`steps` calls of a program of one step, each token copied to the host before the next."""
    tokens, drawn = [], None
    for _ in range(steps):
        state, drawn = program(weights, state, rope)
        tokens.append(np.asarray(drawn.tokens)[0])
    return state, Drawn(tokens=np.stack(tokens), reason=drawn.reason, logprobs=None)


class Drift:
    """How far the logits of one step are from those in float64, over a few sequences.

    Ablations that trace the same kernels share an answer: some change only how a program is run.
    """

    def __init__(self, workload: AblatedWorkload, ablations: Sequence[Ablation], sequences: int):
        self.workload, self.sequences = workload, sequences
        model = workload.decoder.weights.model
        states = map(workload.fresh, range(sequences))
        self._truth = np.stack([oracle.logits(model, s.caches, s.token, s.position) for s in states])
        different = {_traced(one): one for one in ablations}
        programs = compile_all([functools.partial(workload.logits, one) for one in different.values()])
        self._known = dict(zip(different, map(self._compared, programs), strict=True))

    def of(self, ablation: Ablation) -> dict[str, float]:
        """RMS of the difference over RMS of the logits, the largest difference, and the mean divergence (KL)."""
        return self._known[_traced(ablation)]

    def _compared(self, program: Callable) -> dict[str, float]:
        weights, rope = self.workload.decoder.weights, self.workload.rope
        found = [program(weights, self.workload.fresh(i), rope) for i in range(self.sequences)]
        return compared(np.stack([np.asarray(logits, np.float64) for logits in found]), self._truth)


def _traced(ablation: Ablation) -> Any:
    """What the kernels of an ablation's step depend on."""
    return ablation.implementation, ablation.deferred_norm, ablation.kernels, ablation.hooks


def compared(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of logits [..., V] and the truth, in float64."""
    difference = logits - truth
    return dict(
        drift=float(np.sqrt(np.mean(difference**2) / np.mean(truth**2))),
        drift_max=float(np.abs(difference).max()),
        drift_kl=float(divergence(log_softmax(logits), log_softmax(truth)).mean()),
    )
