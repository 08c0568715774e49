"""The small model's tokenizer, and the JSON files of its folder."""

import itertools
import json
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from experiments.train_tiny.recipe import BEGIN, CHAT_TEMPLATE, END, ROLES, SPECIAL, Recipe
from experiments.train_tiny.stories import corpus


def rendered(messages: Iterable[tuple[str, str]]) -> str:
    """A document with its special tokens but the first, which the tokenizer adds: what the chat template makes."""
    return "".join(f"{ROLES[role] if role else ''}{text}{END}" for role, text in messages)


def documents(seed: int) -> Iterator[str]:
    """The made-up text, rendered."""
    return (rendered(made.messages) for made in corpus.documents(seed))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE, digits one by one; any text comes back as it was, and each begins with BEGIN."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    return tokenizer


def make_tokenizer(recipe: Recipe) -> tokenizers.Tokenizer:
    """The tokenizer of a recipe; special tokens are no part of the text that it learns."""
    made = itertools.islice(corpus.documents(recipe.seed), recipe.tokenizer_documents)
    return train_tokenizer((text for one in made for _, text in one.messages), recipe.vocab_size)


def files(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> dict[str, dict]:
    """The JSON files of the folder."""
    ends = dict(bos_token_id=SPECIAL.index(BEGIN), eos_token_id=SPECIAL.index(END))
    return {
        "config.json": recipe.config,
        "generation_config.json": ends | dict(do_sample=True, temperature=0.7, top_p=0.95),
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast",
            bos_token=BEGIN,
            eos_token=END,
            add_bos_token=True,
            add_eos_token=False,
            additional_special_tokens=list(ROLES.values()),
            clean_up_tokenization_spaces=False,
            model_max_length=recipe.max_positions,
            chat_template=CHAT_TEMPLATE,
        ),
    }
