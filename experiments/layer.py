"""The launches of a decoder layer, chained over all layers of a model: what an op costs among its neighbours.

    python -m experiments.layer [--models=llama-3.1-8b,llama-3.2-1b] [--context=1024] [--rows=1]

needs an NVIDIA GPU and takes about 20 seconds a model. The weights are random and cold (each layer has its own), the
tiles those that the kernels choose by themselves, the calls dependent, in command buffers, launch gaps included. A row
per model and implementation is appended to the results, with the read ceiling measured in the same run.
"""

import sys

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax

import pallas_kernels as pk
from experiments import cases, provenance
from experiments.models import MODELS
from experiments.row_log import Log
from pallas_kernels.common import checks, devices, tuned
from pallas_kernels.common.weighted import weight_left
from tokenspeed import measure
from tokenspeed.decode import HALVED_ROWS

OPS = ("qkv", "attention", "out", "gate_up", "down")
STEPS = 40
"""Passes over all layers in one timed call: the host's share of starting a call is then below 1%."""
KIB = 1024


def case_of(op: str, model: str, rows: int = 1, **sizes) -> cases.Case:
    """The case of an op as it comes in a layer: few rows come with the norm's weight in them."""
    return cases.make(cases.WEIGHTED.get(op, op) if rows <= HALVED_ROWS else op, model, rows=rows, **sizes)


MODELS_FLAG = flags.DEFINE_list("models", ["llama-3.1-8b", "llama-3.2-1b"], "which models' layers")
CONTEXT_FLAG = flags.DEFINE_integer("context", 1024, "positions in the KV cache")
ROWS_FLAG = flags.DEFINE_integer("rows", 1, "sequences, a row of each", lower_bound=1, upper_bound=checks.MAX_ROWS)
DTYPE_FLAG = flags.DEFINE_enum("dtype", "bf16", list(cases.DTYPES), "of weights, activations and cache")
PREFETCH_FLAG = flags.DEFINE_list(
    "prefetch_kib", ["0", "4096"], "KiB of the next weight that each kernel asks for early; a row for each value"
)
_RESULTS = flags.DEFINE_string("results", "out/layer-{device}.jsonl", "JSON lines that rows are appended to")


def weights(model: str, key: jax.Array, dtype: str, context: int, rows: int = 1) -> dict:
    """One layer's weights and its contiguous cache of `context` positions of each row, random."""
    m = MODELS[model]
    keys, norm_keys = jax.random.split(key, len(OPS)), jax.random.split(jax.random.fold_in(key, 1))
    streamed = {
        op: case_of(op, model, rows=rows, context=context, dtype=dtype).streamed(k)
        for op, k in zip(OPS, keys, strict=True)
    }
    norms = {
        name: (1.0 + 0.1 * jax.random.normal(k, (m.d_model,), jnp.float32)).astype(cases.DTYPES[dtype])
        for name, k in zip(("attention_norm", "mlp_norm"), norm_keys, strict=True)
    }
    return streamed | norms


def state(model: str, key: jax.Array, dtype: str, context: int, rows: int = 1) -> dict:
    """What the layers share and pass on: the residual stream, positions (the last), rotation tables, counters."""
    m = MODELS[model]
    angles = jax.random.uniform(key, (context, m.head_dim // 2), maxval=6.3)
    stream = jax.random.normal(key, (rows, m.d_model), jnp.float32)
    return dict(
        x=stream.astype(cases.DTYPES[dtype]),
        stream=stream,
        positions=jnp.full((rows,), context - 1, jnp.int32),
        rope=(jnp.cos(angles), jnp.sin(angles)),
        counters=pk.attention_counters(rows, m.num_kv_heads),
    )


def forward(
    state: dict,
    layer: dict,
    following: dict,
    implementation: str | None,
    tiles: dict | None = None,
    prefetch: int = 0,
    last: bool = True,
) -> tuple[dict, pk.KVCache]:
    """One decoder layer on `state`, as `tokenspeed.decode` has it.

    Args:
        following: the layer after this one, whose weights the last kernel may ask for.
        last: whether what comes after this layer norms by itself.
        tiles: by op; absent ones are chosen by the kernels.
        prefetch: bytes of the next weight that a kernel asks for; 0 for none.
    """
    tiles = tiles or {}

    def how(op, upcoming):
        early = dict(prefetch=upcoming, prefetch_bytes=prefetch) if prefetch else {}
        return dict(implementation=implementation, tiles=tiles.get(op)) | early

    halves = implementation != "xla" and len(state["stream"]) <= HALVED_ROWS
    x, positions, norms = state["x"], state["positions"], (layer["attention_norm"], layer["mlp_norm"])
    upcoming = how("qkv", layer["out"])  # attention streams no weights of its own
    q, cache = pk.qkv(
        x,
        weight_left(x, norms[0]),
        layer["qkv"],
        layer["attention"],
        positions=positions,
        rope=state["rope"],
        **upcoming,
    )
    upcoming = how("attention", layer["out"])
    mixed, counters = pk.attention(q, cache, lengths=positions + 1, counters=state["counters"], **upcoming)
    next_norms = (norms[1], None if last else following["attention_norm"]) if halves else (None, None)

    def added(op, x, weight, stream, norm, **options):
        if norm is not None:
            return op(x, weight, residual=stream, norm=norm, **options)
        return (op(x, weight, residual=stream, wide=True, **options),) * 2

    x, stream = added(pk.out, mixed, layer["out"], state["stream"], next_norms[0], **how("out", layer["gate_up"]))
    product = pk.gate_up(x, weight_left(x, norms[1]), layer["gate_up"], **how("gate_up", layer["down"]))
    x, stream = added(pk.down, product, layer["down"], stream, next_norms[1], **how("down", following["qkv"]))
    return state | dict(x=x, stream=stream, counters=counters), cache


def chain(state, layers, caches, implementation, tiles=None, prefetch=0, steps=1):
    """All layers in order, `steps` times over: (the residual stream at the end, the caches)."""

    def step(_, carry):
        carried, caches = carry
        filled = [layer | dict(attention=cache) for layer, cache in zip(layers, caches, strict=True)]
        new = []
        for i, layer in enumerate(filled):
            following = filled[(i + 1) % len(filled)]
            last = i == len(filled) - 1
            carried, cache = forward(carried, layer, following, implementation, tiles, prefetch, last)
            new.append(cache)
        # Every step starts from the same scale, so that random weights make nothing overflow.
        stream = carried["stream"]
        stream = stream * lax.rsqrt(jnp.mean(stream * stream, axis=-1, keepdims=True) + 1e-6)
        return carried | dict(x=stream.astype(state["x"].dtype), stream=stream), new

    carried, caches = lax.fori_loop(0, steps, step, (state, caches))
    return carried["x"], caches


def layer_bytes(model: str, context: int, rows: int, dtype: str) -> int:
    """Bytes that one layer must move."""
    return sum(case_of(op, model, rows=rows, context=context, dtype=dtype).cost.bytes for op in OPS)


class Layers:
    """The layers of a model on the device, and the time that one of them takes."""

    def __init__(self, model: str, dtype: str = "bf16", context: int = 1024, rows: int = 1):
        self.model, self.dtype, self.context, self.rows = model, dtype, context, rows
        make = jax.jit(lambda key: weights(model, key, dtype, context, rows))
        layers = [make(key) for key in jax.random.split(jax.random.key(0), MODELS[model].layers)]
        self.caches = [layer.pop("attention") for layer in layers]
        self.layers = layers
        self.state = jax.jit(lambda key: state(model, key, dtype, context, rows))(jax.random.key(1))

    def result(self, implementation: str, tiles: dict | None = None, prefetch: int = 0) -> jax.Array:
        """The residual stream after one pass, the caches left as they are."""

        def once(state, layers, caches):
            return chain(state, layers, caches, implementation, tiles, prefetch)[0]

        return jax.jit(once)(self.state, self.layers, self.caches)

    def compiled(self, implementation: str, tiles: dict | None = None, prefetch: int = 0):
        """The program that `time` takes; several may be compiled at once."""

        def run(state, layers, caches):
            return chain(state, layers, caches, implementation, tiles, prefetch, STEPS)

        return jax.jit(run, donate_argnums=2).lower(self.state, self.layers, self.caches).compile()

    def time(self, program, samples: int = 7) -> measure.Timing:
        """Of one layer."""

        def call():
            x, self.caches = program(self.state, self.layers, self.caches)
            return x

        return measure.time_calls(call, calls=STEPS * len(self.layers), samples=samples)


def chosen_tiles(layers: Layers) -> dict[str, dict]:
    """By op, the tiles that the kernels choose by themselves on this device."""
    device, found = tuned.current_device(), {}
    for op in OPS:
        case = case_of(op, layers.model, layers.rows, context=layers.context, dtype=layers.dtype)
        found[op] = cases.fields_of(case.chosen(device))
    return found


def row_of(layers: Layers, implementation: str, prefetch: int, ceiling_gbps: float) -> dict:
    """Times one implementation and says what it means."""
    timing = layers.time(layers.compiled(implementation, prefetch=prefetch))
    moved = layer_bytes(layers.model, layers.context, layers.rows, layers.dtype)
    tiles = launches = None
    if implementation == "triton":
        tiles = chosen_tiles(layers)
        whole_norms = cases.WEIGHTED if layers.rows > HALVED_ROWS else ()
        launches = len(OPS) + sum(tiles[op]["mma"] for op in whole_norms)
    beyond = timing.median_us - moved / ceiling_gbps / 1e3
    return dict(
        op="layer",
        model=layers.model,
        rows=layers.rows,
        context=layers.context,
        dtype=layers.dtype,
        implementation=implementation,
        prefetch_bytes=prefetch,
        tiles=tiles,
        launches=launches,
        status="ok",
        median_us=round(timing.median_us, 3),
        p10_us=round(timing.p10_us, 3),
        p90_us=round(timing.p90_us, 3),
        samples=timing.samples,
        bytes=moved,
        achieved_gbps=round(moved / timing.median_us / 1e3, 1),
        ceiling_gbps=round(ceiling_gbps, 1),
        percent_of_ceiling=round(100 * moved / ceiling_gbps / 1e3 / timing.median_us, 2),
        beyond_bytes_us_per_launch=round(beyond / launches, 3) if launches else None,
    )


def relative_difference(x: jax.Array, y: jax.Array) -> float:
    """RMS of x - y over RMS of y."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return float(jnp.sqrt(jnp.mean((x - y) ** 2) / jnp.mean(y**2)))


def main(argv) -> None:
    if jax.default_backend() != "gpu":
        raise app.UsageError("the layer benchmark needs an NVIDIA GPU")
    origin = provenance.collect(["python", "-m", "experiments.layer", *argv[1:]])
    device = devices.named(origin["device"])
    ceiling = measure.gpu_read_ceiling_gbps()
    print(f"read ceiling measured now: {ceiling:.0f} GB/s")
    with Log(_RESULTS.value.format(device=device.key)) as log:
        for model in MODELS_FLAG.value:
            if model not in MODELS:
                raise app.UsageError(f"models: expected some of {', '.join(MODELS)}, got {model!r}")
            layers = Layers(model, DTYPE_FLAG.value, CONTEXT_FLAG.value, ROWS_FLAG.value)
            plain = layers.result("xla")
            for implementation, kib in [("triton", int(k)) for k in PREFETCH_FLAG.value] + [("xla", 0)]:
                difference = relative_difference(layers.result(implementation, prefetch=kib * KIB), plain)
                row = (
                    row_of(layers, implementation, kib * KIB, ceiling)
                    | dict(difference_from_xla=difference, date=provenance.now())
                    | origin
                )
                log.append(row)
                print(
                    f"{model} {implementation} prefetch {kib} KiB: {row['median_us']:.2f} us a layer, "
                    f"{row['percent_of_ceiling']:.1f}% of the ceiling, beyond bytes a launch: "
                    f"{row['beyond_bytes_us_per_launch']} us; differs from XLA by {difference:.2g}",
                    flush=True,
                )
    print(f"rows appended to {log.path}")


if __name__ == "__main__":
    app.run(main, argv=sys.argv)
