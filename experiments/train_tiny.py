"""Trains the small LLaMA of tokenspeed/tiny, on text that `experiments.tiny_stories` makes up.

    python -m experiments.train_tiny --out=out/tiny

makes the text, a tokenizer and a model of 1.1 million parameters, takes about 12 minutes on two cores, and writes a
checkpoint folder in the Hugging Face layout, whole or not at all. The same seed gives the same folder on one machine.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from absl import app, flags
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from experiments.tiny_stories import corpus
from tokenspeed import checkpoint
from tokenspeed.config import ModelConfig
from tokenspeed.model import Llama

BEGIN, END = "<|begin|>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
SPECIAL = (BEGIN, END, *ROLES.values())
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role: expected system, user or assistant, got ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PROMPTS = ("Once upon a time", [("user", "Tell me a story about a rabbit.")])
"""What the samples at the end continue or answer."""

OUT_FLAG = flags.DEFINE_string("out", None, "the folder to write; it must not exist yet")
SEED_FLAG = flags.DEFINE_integer("seed", 0, "of the text, the weights and the samples")
STEPS_FLAG = flags.DEFINE_integer("steps", None, "optimiser steps, if not the recipe's")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The sizes of the model and how it is trained.

    Attributes:
        vocab_size, d_model, d_ff, num_layers, num_heads, num_kv_heads, head_dim, max_positions: of the model.
        tokenizer_documents: how many documents the tokenizer is trained on.
        steps, batch, length: of the training: `batch` rows of `length` tokens a step, none seen twice.
        long_share: of the steps, the last ones, whose rows are as long as `max_positions`, and fewer in proportion.
        learning_rate: its peak; a linear rise over `warmup` steps, then half a cosine down to a fiftieth.
        weight_decay: of the matrices. clip: the largest norm of the gradient.
        seed: of everything.
    """

    vocab_size: int = 1024
    d_model: int = 128
    d_ff: int = 512
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    max_positions: int = 512
    tokenizer_documents: int = 4000
    steps: int = 4000
    batch: int = 8
    length: int = 128
    long_share: float = 0.3
    learning_rate: float = 6e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def config(self) -> dict:
        """The config.json."""
        return dict(
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            intermediate_size=self.d_ff,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_positions,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=True,
            torch_dtype="bfloat16",
            bos_token_id=SPECIAL.index(BEGIN),
            eos_token_id=SPECIAL.index(END),
        )


def rendered(messages: Iterable[tuple[str, str]]) -> str:
    """A document with its special tokens but the first, which the tokenizer adds: what the chat template makes."""
    return "".join(f"{ROLES[role] if role else ''}{text}{END}" for role, text in messages)


def documents(seed: int) -> Iterator[str]:
    """The text of `tiny_stories`, rendered."""
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


def rows(texts: Iterator[str], tokenizer: tokenizers.Tokenizer, length: int) -> Iterator[np.ndarray]:
    """Rows int32 [length + 1], each of documents one after the other from the beginning of one; the last is cut."""
    while True:
        row: list[int] = []
        while len(row) <= length:
            row += tokenizer.encode(next(texts)).ids
        yield np.asarray(row[: length + 1], np.int32)


def batches(texts: Iterator[str], tokenizer: tokenizers.Tokenizer, batch: int, length: int) -> Iterator[np.ndarray]:
    """Endless int32 [batch, length + 1]."""
    made = rows(texts, tokenizer, length)
    while True:
        yield np.stack(list(itertools.islice(made, batch)))


def curriculum(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of every step: short rows, which are fast, and at the end long ones."""
    texts = documents(recipe.seed)
    long_steps = int(recipe.long_share * recipe.steps)
    fewer = max(1, recipe.batch * recipe.length // recipe.max_positions)
    yield from itertools.islice(batches(texts, tokenizer, recipe.batch, recipe.length), recipe.steps - long_steps)
    yield from itertools.islice(batches(texts, tokenizer, fewer, recipe.max_positions), long_steps)


def next_logits(model: Llama, tokens: jax.Array, last: jax.Array) -> jax.Array:
    """Logits [V] of what follows token `last` of tokens int32 [1, T]."""
    return model(tokens)[0, last]


def loss_of(model: Llama, tokens: jax.Array) -> jax.Array:
    """Cross-entropy of each token after the first, in nats, of tokens int32 [B, T + 1]."""
    logits = model(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


run_loss, run_next_logits = nnx.jit(loss_of), nnx.jit(next_logits)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    peak, warmup = recipe.learning_rate, min(recipe.warmup, recipe.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, recipe.steps, end_value=peak / 50)

    def matrices(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    adam = optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=recipe.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), adam)


def initial(config: ModelConfig, seed: int) -> Llama:
    """A model to train, float32: projections of unit gain, but those that end a branch begin near nothing."""
    model = Llama(config, jnp.float32, rngs=nnx.Rngs(seed))

    def spread(weights: nnx.Param, deviation: float) -> None:
        weights[...] *= deviation / jnp.std(weights[...])

    spread(model.embedding, 0.1)
    for block in model.blocks:
        for entry in (block.qkv, block.gate_up):
            spread(entry.rows, config.d_model**-0.5)
        for end in (block.out, block.down):
            spread(end.rows, 0.01)
    return model


def train(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> tuple[Llama, list[float]]:
    """The trained model, in the config's dtype, and the loss of every step."""
    config = ModelConfig.from_dict(recipe.config)
    graph, params = nnx.split(initial(config, recipe.seed))
    update = optimizer(recipe)

    @jax.jit
    def step(params, state, tokens):
        loss, gradients = jax.value_and_grad(lambda p: loss_of(nnx.merge(graph, p), tokens))(params)
        updates, state = update.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = update.init(params), []
    bar = tqdm(curriculum(recipe, tokenizer), total=recipe.steps, mininterval=1)
    for tokens in bar:
        params, state, loss = step(params, state, tokens)
        losses.append(float(loss))
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(config.dtype), params)), losses


def held_out_loss(recipe: Recipe, model: Llama, tokenizer: tokenizers.Tokenizer, count: int = 8) -> float:
    """The loss on text of another seed."""
    made = batches(documents(recipe.seed + 1_000_003), tokenizer, recipe.batch, recipe.length)
    return float(np.mean([run_loss(model, tokens) for tokens in itertools.islice(made, count)]))


def sample(
    model: Llama,
    tokenizer: tokenizers.Tokenizer,
    prompt: str | list[tuple[str, str]],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    length: int = 256,
) -> str:
    """What the model writes after a text, or answers to messages; the whole context is run again for every token."""
    text = prompt if isinstance(prompt, str) else rendered(prompt) + ROLES["assistant"]
    ids = tokenizer.encode(text).ids
    prompted = len(ids)
    key = jax.random.key(seed)
    while len(ids) < length:
        logits = run_next_logits(model, np.asarray([ids + [0] * (length - len(ids))], np.int32), len(ids) - 1)
        if temperature:
            key, now = jax.random.split(key)
            ids.append(int(jax.random.categorical(now, logits / temperature)))
        else:
            ids.append(int(logits.argmax()))
        if ids[-1] == SPECIAL.index(END):
            break
    return tokenizer.decode(ids[prompted if isinstance(prompt, list) else 0 :])


def make(recipe: Recipe, out: Path) -> None:
    """Trains and writes the folder."""
    begun = time.perf_counter()
    tokenizer = make_tokenizer(recipe)
    if tokenizer.get_vocab_size() != recipe.vocab_size:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens, not {recipe.vocab_size}: add documents")
    model, losses = train(recipe, tokenizer)
    print(
        f"{model.config.num_parameters:,} parameters, {recipe.steps * recipe.batch * recipe.length:,} tokens, "
        f"{time.perf_counter() - begun:.0f} s; loss {np.mean(losses[-20:]):.3f}, "
        f"held out {held_out_loss(recipe, model, tokenizer):.3f}"
    )
    checkpoint.save(out, model, files(recipe, tokenizer))
    print(f"written: {out}")
    for prompt, temperature in itertools.product(PROMPTS, (0.0, 0.7)):
        how = f"sampled at {temperature}" if temperature else "greedy"
        length = min(256, recipe.max_positions)
        print(f"\n{prompt!r}, {how}:")
        print(sample(model, tokenizer, prompt, temperature=temperature, seed=recipe.seed, length=length))


def main(argv) -> None:
    del argv
    out = Path(OUT_FLAG.value)
    if out.exists():
        raise app.UsageError(f"--out: {out} exists already")
    recipe = Recipe(seed=SEED_FLAG.value)
    if STEPS_FLAG.value is not None:
        recipe = dataclasses.replace(recipe, steps=STEPS_FLAG.value)
    make(recipe, out)


if __name__ == "__main__":
    flags.mark_flag_as_required("out")
    app.run(main, argv=sys.argv)
