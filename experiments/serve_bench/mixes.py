"""What is asked: how long prompts are, and how many tokens are wanted."""

import dataclasses

import numpy as np

from experiments.serve_bench.texts import Text

MIXES = ("chat", "long", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request.

    Attributes:
        kind: 'chat' or 'long'. text: of the message; input: its tokens or words. output: tokens to be generated.
    """

    kind: str
    text: str
    input: int
    output: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long prompts and answers are.

    Attributes:
        text: makes prompts. chat_input, chat_output: medians of chats, whose logarithms are normal with a standard
            deviation of `spread`, within a quarter and four times the median. long_input, long_output: of every long
            prompt.
    """

    text: Text
    spread: float
    chat_input: int
    chat_output: int
    long_input: int
    long_output: int

    def chat(self, rng: np.random.Generator, texts: np.random.Generator) -> Prompt:
        """`rng` draws how long it is, `texts` its words."""
        input, output = (
            max(1, round(np.clip(median * np.exp(self.spread * rng.standard_normal()), median / 4, 4 * median)))
            for median in (self.chat_input, self.chat_output)
        )
        return Prompt(kind="chat", text=self.text(input, texts), input=input, output=output)

    def long(self, texts: np.random.Generator) -> Prompt:
        text = self.text(self.long_input, texts)
        return Prompt(kind="long", text=text, input=self.long_input, output=self.long_output)
