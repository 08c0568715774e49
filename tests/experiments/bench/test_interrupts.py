"""Control-C while JAX lowers, when C++ would take an exception for the end of the process."""

import signal
import time

import pytest

from experiments.bench import interrupts

CODE = """
def called_from_cpp(body):
    body()
"""


@pytest.fixture
def handled():
    before = signal.signal(signal.SIGINT, interrupts.raise_interrupt)
    yield
    signal.signal(signal.SIGINT, before)


def in_module(name, body):
    scope = dict(__name__=name)
    exec(CODE, scope)
    scope["called_from_cpp"](body)


@pytest.mark.parametrize("module", ["jax._src.interpreters.mlir", "jax._src.pallas.triton.lowering"])
def test_an_interrupt_waits_until_jax_has_lowered(handled, module):
    reached = []

    def lowering():
        signal.raise_signal(signal.SIGINT)
        time.sleep(3 * interrupts.AGAIN_S)
        reached.append("end")

    in_module(module, lowering)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(60)
    assert reached == ["end"]


@pytest.mark.parametrize("module", ["jax._src.api", "experiments.sweep.cpu"])
def test_elsewhere_it_comes_at_once(handled, module):
    with pytest.raises(KeyboardInterrupt):
        in_module(module, lambda: signal.raise_signal(signal.SIGINT))
