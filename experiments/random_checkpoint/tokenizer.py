"""A byte-level BPE tokenizer of any size, with Llama 3's special tokens and chat template, and the files of both."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from experiments.random_checkpoint.words import pseudo_words, zipf_text
from experiments.train_tiny.stories import corpus

SPECIALS = 256
"""At the end of the vocabulary."""
BYTES = 256
LEAST = BYTES + SPECIALS
"""Tokens of the smallest vocabulary that there can be."""
NAMED = {
    0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
    8: "eom_id", 9: "eot_id", 10: "python_tag",
}  # fmt: skip
"""Those that are not reserved, by their place among the special ones."""
BEGIN, END = "<|begin_of_text|>", "<|eot_id|>"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's: no token goes over one of these."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TOKENS_A_STORY = 64
"""Of the vocabulary for each document of English, so that what people type is few tokens too."""


def special_tokens() -> list[str]:
    """Llama 3's, in their order."""
    reserved = itertools.count()
    return [f"<|{NAMED[i] if i in NAMED else f'reserved_special_token_{next(reserved)}'}|>" for i in range(SPECIALS)]


def special_ids(vocab_size: int) -> dict[str, Any]:
    """bos_token_id and eos_token_id, as config.json has them."""
    first = vocab_size - SPECIALS
    return dict(bos_token_id=first, eos_token_id=[first + 1, first + 8, first + 9])


def make_tokenizer(vocab_size: int, seed: int) -> tokenizers.Tokenizer:
    """Of exactly `vocab_size` tokens, `LEAST` or more, trained on text that is made up; the same for the same seed.

    128,256 tokens take 10 seconds on two cores.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(vocab_size, seed), trainer)
    tokenizer.add_special_tokens(special_tokens())
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens, not {vocab_size}: it has too few words")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def _text(vocab_size: int, seed: int) -> Iterator[str]:
    """Words enough: each gives a merge at least, until it is a token itself."""
    rng = np.random.default_rng(seed)
    for made in itertools.islice(corpus.documents(seed), vocab_size // TOKENS_A_STORY):
        yield "\n\n".join(text for _, text in made.messages)
    yield from zipf_text(pseudo_words(vocab_size, rng), rng)


def files(tokenizer: tokenizers.Tokenizer, max_positions: int) -> dict[str, dict]:
    """tokenizer.json and tokenizer_config.json."""
    return {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast",
            bos_token=BEGIN,
            eos_token=END,
            clean_up_tokenization_spaces=False,
            model_max_length=max_positions,
            chat_template=CHAT_TEMPLATE,
        ),
    }
