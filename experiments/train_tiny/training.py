"""Training of the small model on the CPU, and what it writes."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from flax import nnx
from tqdm import tqdm

from experiments.train_tiny.recipe import END, ROLES, SPECIAL, Recipe
from experiments.train_tiny.tokenizer import documents, rendered
from tokenspeed.models import hf_config
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.decoder import Llama


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
            spread(entry.values, config.d_model**-0.5)
        for end in (block.out, block.down):
            spread(end.values, 0.01)
    return model


def train(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> tuple[Llama, list[float]]:
    """The trained model, in the config's dtype, and the loss of every step."""
    config = hf_config.from_dict(recipe.config)
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
