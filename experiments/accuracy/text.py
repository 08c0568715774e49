"""The text that models are compared on, as rows of token ids."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.bench.errors import UsageError
from experiments.train_tiny.recipe import SPECIAL
from experiments.train_tiny.stories import corpus
from experiments.train_tiny.tokenizer import rendered
from tokenspeed.text.tokenizer import Tokenizer

STORIES = "stories"
SEED = 2_000_003
"""Of stories that the small model was neither trained nor validated on."""


def stories(tokenizer: Tokenizer, seed: int = SEED) -> Iterator[str]:
    """Endless made-up documents: with the small model's special tokens where the tokenizer has them, else no chats."""
    special = all(len(tokenizer.encode(one, add_special_tokens=False)) == 1 for one in SPECIAL)
    for made in corpus.documents(seed):
        if special:
            yield rendered(made.messages)
        elif not made.messages[0][0]:
            yield made.messages[0][1]


def story_rows(tokenizer: Tokenizer, length: int, count: int) -> list[np.ndarray]:
    """Rows int32 [length + 1], each of documents one after the other from the beginning of one; the last is cut.

    Raises:
        UsageError: the tokenizer cannot encode the stories.
    """
    texts, rows = stories(tokenizer), []
    for _ in range(count):
        row: list[int] = []
        while len(row) <= length:
            text = next(texts)
            ids = tokenizer.encode(text)
            if _without_spaces(text) not in _without_spaces(tokenizer.decode(ids, skip_special_tokens=False)):
                raise UsageError("text: expected a file, since the tokenizer cannot encode the stories of the project")
            row += ids
        rows.append(np.asarray(row[: length + 1], np.int32))
    return rows


def file_rows(path: str, tokenizer: Tokenizer, length: int, count: int) -> list[np.ndarray]:
    """Rows int32 [length + 1] of a file in UTF-8, one after the other; each begins with BOS where prompts do.

    Raises:
        UsageError: the file cannot be read, or has fewer tokens.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"text: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"text: {path}: expected text in UTF-8") from None
    ids = tokenizer.encode(text, add_special_tokens=False)
    begin = [tokenizer.bos_id] if tokenizer.encode("a")[:1] == [tokenizer.bos_id] else []
    each = length + 1 - len(begin)
    if len(ids) < each * count:
        raise UsageError(f"text: {path}: expected {each * count} tokens or more, got {len(ids)}; see tokens")
    return [np.asarray([*begin, *part], np.int32) for part in itertools.batched(ids[: each * count], each)]


def _without_spaces(text: str) -> str:
    return "".join(text.split())
