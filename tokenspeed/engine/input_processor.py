"""InputProcessor: from what a caller says to the rows that an engine takes."""

import dataclasses
import secrets
from collections.abc import Sequence

from tokenspeed.arguments import integers, is_sequence
from tokenspeed.engine.row import Row
from tokenspeed.messages import shown
from tokenspeed.models.config import ModelConfig
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class InputProcessor:
    """Checks prompts and their params.

    Attributes:
        config: of the model. tokenizer: or None, for token ids only. max_context: positions of a sequence.
    """

    config: ModelConfig
    tokenizer: Tokenizer | None
    max_context: int

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, text or ids, checked.

        Raises:
            TypeError: neither a text nor a sequence of integers.
            ValueError: it has no token, one outside the vocabulary, or too many for `max_context`.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("prompts: expected token ids, since the folder has no tokenizer")
            prompt = self.tokenizer.encode(prompt)
        elif not is_sequence(prompt):
            raise TypeError(f"prompts: expected a text or a sequence of token ids, got {shown(prompt)}")
        ids = integers("prompts", prompt, 0, self.config.vocab_size - 1)
        if not ids:
            raise ValueError("prompts: expected at least one token")
        if len(ids) >= self.max_context:
            raise ValueError(f"prompts: {len(ids)} tokens leave no room in a context of {self.max_context}")
        return ids

    def rows(self, number: int, prompt: Prompt, params: SamplingParams) -> list[Row]:
        """A row for each sample of a prompt, whose number is told where something is wrong with it.

        Raises:
            TypeError, ValueError: the prompt or its params cannot be run; the message names what.
        """
        ids, seed = self.encode(prompt), secrets.randbits(64)
        return [
            Row(
                number, ids, params, sample, seed,
                tokenizer=self.tokenizer, max_context=self.max_context, config=self.config,
            )
            for sample in range(params.n)
        ]  # fmt: skip
