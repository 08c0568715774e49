"""The command line: generate text with a checkpoint, serve it, quantise it, or look at what it is."""

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax

from pallas_kernels import DTYPES, IMPLEMENTATIONS, ROUNDED_ACTIVATIONS
from tokenspeed import convert_command, inspection, serve_command
from tokenspeed.exit_status import INTERRUPTED, UNREAD
from tokenspeed.figures import figures, said
from tokenspeed.messages import one_line, shown
from tokenspeed.models import hf_config, kv_dtypes, memory
from tokenspeed.models.config import ConfigError, ModelConfig
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.version import VERSION
from tokenspeed.weights.revision import revision_of
from tokenspeed.weights.tiny import folder_of

MAX_TOKENS = 256
"""Of the command line, where nothing else is said."""
SAMPLING = {
    "n": (int, "samples to draw"),
    "temperature": (float, "logits are divided by it; 0 takes the most likely token"),
    "top_p": (float, "keep the most likely tokens up to this mass"),
    "top_k": (int, "keep this many of the most likely tokens; 0 keeps all"),
    "min_p": (float, "keep tokens at least this times as likely as the likeliest"),
    "max_tokens": (int, "tokens to generate at most"),
    "min_tokens": (int, "tokens before the model may end"),
    "seed": (int, "the same one draws the same tokens"),
    "logprobs": (int, "with --json: log-probabilities of this many tokens, and of the one that was drawn"),
    "presence_penalty": (float, "subtracted from the logits of tokens generated before"),
    "frequency_penalty": (float, "the same, once for each time"),
    "repetition_penalty": (float, "divides the logits of tokens seen before"),
}
"""Fields of SamplingParams that are flags as they are: their type, and what help says."""
DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplingParams)} | dict(max_tokens=MAX_TOKENS)


class _Parser(argparse.ArgumentParser):
    """Tells a mistake as every other one is told: in one line."""

    def error(self, message: str):
        raise ValueError(message)


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="python -m tokenspeed",
        description=__doc__,
        epilog="Compiled programs are kept in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR; "
        "JAX_ENABLE_COMPILATION_CACHE=false keeps none.",
    )
    top.add_argument("--version", action="version", version=f"tokenspeed-jax {VERSION}, jax {jax.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = _Parser(add_help=False)
    common.add_argument("--model", metavar="DIR", help="a checkpoint folder in the Hugging Face layout ('tiny': ours)")
    common.add_argument("--random-weights", metavar="CONFIG.json", help="no checkpoint: random weights of that config")
    common.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of weights and activations (default: the checkpoint's; to generate on a CPU, float32)",
    )
    common.add_argument(
        "--max-context", type=int, metavar="N", help="positions of a sequence (default: the model's limit)"
    )
    common.add_argument(
        "--kv-cache-dtype", default=kv_dtypes.AUTO, metavar="K[/V]",
        help=f"of keys and values: {kv_dtypes.FORM} (default: auto, that of the weights)",
    )  # fmt: skip
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    generate = commands.add_parser("generate", parents=[common], help="generate text", description="Generate text.")
    generate.add_argument("--prompt", help="the text to continue; '-' reads standard input, but for its last newline")
    generate.add_argument("--prompt-ids", metavar="1,2,3", help="token ids instead of text; '-' too")
    generate.add_argument("--chat", action="store_true", help="the prompt is a user's message (chat template)")
    generate.add_argument("--system", help="a system message in front of it, with --chat")
    generate.add_argument("--implementation", choices=IMPLEMENTATIONS, help="of the kernels (default: by device)")
    generate.add_argument(
        "--activations",
        choices=ROUNDED_ACTIVATIONS,
        help="of int8 and int4 weights: rounded (default: 16 bits)",
    )
    generate.add_argument("--stop", action="append", help="a string that ends the text (repeatable)")
    generate.add_argument("--stop-token-ids", metavar="1,2", help="token ids that end it")
    generate.add_argument("--ignore-eos", action="store_true", help="the model's own end does not end it")
    generate.add_argument("--logit-bias", metavar="ID:BIAS,...", help="added to the logits of tokens")
    for name, (kind, text) in SAMPLING.items():
        default = "none" if DEFAULTS[name] is None else DEFAULTS[name]
        flag = f"--{name.replace('_', '-')}"
        generate.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=f"{text} (default: {default})")
    generate.set_defaults(run=_generate)

    serve_command.add_to(commands)
    convert_command.add_to(commands)

    inspect = commands.add_parser("inspect", parents=[common], help="what a model is, and what it takes",
                                  description="What a model is and what it takes; loads nothing.")  # fmt: skip
    inspect.add_argument("--device", choices=tuple(memory.DEVICE_GB), help="plan for that GPU's memory")
    inspect.add_argument("--batch", type=int, default=1, help="sequences at a time (default: %(default)s)")
    inspect.add_argument("--revision", action="store_true", help="print the hash of the folder that `serve` pins")
    inspect.set_defaults(run=_inspect)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0, 2 after a one-line error on standard error, or 141 where nobody reads the output."""
    # The figures say which implementation ran.
    warnings.filterwarnings("ignore", message="pallas_kernels: no NVIDIA GPU here")
    try:
        arguments = parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        return UNREAD
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        message = one_line(error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        message = one_line(error)
        if not isinstance(error, MemoryError):
            if "RESOURCE_EXHAUSTED" not in message:
                raise
            message = f"memory ran out; a smaller --max-context, --max-tokens or --n takes less ({message[:120]})"
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"error: {message}", file=sys.stderr)
    return 2


def _folder(arguments) -> Path | None:
    if (arguments.model is None) == (arguments.random_weights is None):
        raise ValueError("--model, --random-weights: expected one of them")
    if arguments.model == "":
        raise ValueError("--model: expected a folder, got ''")
    return None if arguments.model is None else folder_of(arguments.model)


def _config(arguments) -> ModelConfig:
    folder = _folder(arguments)
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"--model: no folder {folder}")
        return hf_config.from_folder(folder)
    return hf_config.from_file(arguments.random_weights)


def _params(arguments) -> SamplingParams:
    given = {name: getattr(arguments, name) for name in SAMPLING if hasattr(arguments, name)}
    if "logprobs" in given and not arguments.json:
        raise ValueError("--logprobs: expected --json with it, which shows them")
    return SamplingParams(
        **(dict(max_tokens=MAX_TOKENS) | given),
        stop=arguments.stop,
        stop_token_ids=_ids("--stop-token-ids", arguments.stop_token_ids),
        ignore_eos=arguments.ignore_eos,
        logit_bias=_bias(arguments.logit_bias),
    )


def _bias(text: str | None) -> dict[int, float] | None:
    if text is None:
        return None
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        bias = {int(token): float(value) for token, value in pairs}
    except ValueError:
        raise ValueError(f"--logit-bias: expected ID:BIAS,..., got {text!r}") from None
    if len(bias) < len(pairs):
        raise ValueError(f"--logit-bias: expected every id once, got {text!r}")
    return bias


def _ids(name: str, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected token ids with commas between them, got {shown(text)}") from None


def _given(flag: str, text: str) -> str:
    """What a flag was given, or standard input said in its place."""
    if text != "-":
        return text
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError(f"{flag}: expected text on standard input, which is closed")
    try:
        read = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag}: expected text on standard input ({error})") from None
    return read.removesuffix("\n").removesuffix("\r")


def _prompt(arguments, folder: Path | None) -> str | list[int]:
    """The prompt, before anything is loaded for it: text, or token ids."""
    if (arguments.prompt is None) == (arguments.prompt_ids is None):
        raise ValueError("--prompt, --prompt-ids: expected one of them")
    if arguments.system is not None and not arguments.chat:
        raise ValueError("--system: expected --chat with it")
    if arguments.prompt_ids is not None:
        if arguments.chat:
            raise ValueError("--chat: expected a text by --prompt, got --prompt-ids")
        return _ids("--prompt-ids", _given("--prompt-ids", arguments.prompt_ids)) or []
    text = _given("--prompt", arguments.prompt)
    if folder is None:
        raise ValueError("--prompt: random weights have no tokenizer; --prompt-ids takes token ids")
    if not arguments.chat:
        return text
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer is None:
        raise ValueError("--chat: the folder has no tokenizer")
    messages = [] if arguments.system is None else [dict(role="system", content=arguments.system)]
    rendered = tokenizer.render_chat([*messages, dict(role="user", content=text)])
    return tokenizer.encode(rendered, add_special_tokens=False)


def _generate(arguments) -> None:
    params, config, folder = _params(arguments), _config(arguments), _folder(arguments)
    prompt = _prompt(arguments, folder)
    from tokenspeed.llm import LLM
    from tokenspeed.measure.read_ceiling import read_ceiling_gbps

    options = dict(
        dtype=arguments.dtype, max_context=arguments.max_context, implementation=arguments.implementation,
        kv_dtype=kv_dtypes.check("--kv-cache-dtype", arguments.kv_cache_dtype), activations=arguments.activations,
    )  # fmt: skip
    if folder is None:
        llm = LLM.random(config, **options)
    else:
        llm = LLM.from_pretrained(folder, progress=sys.stderr.isatty(), **options)
    ids = llm.encode(prompt)
    compile_s = 0.0
    if jax.default_backend() != "cpu":
        compile_s = llm.warm_up(len(ids), params)  # or the first steps would be those that record the launches
    if params.n == 1 and not arguments.json and llm.tokenizer is not None:
        for delta in llm.stream(ids, params):
            print(delta.text, end="", flush=True)
            whole = delta.completion
        print()
    else:
        (whole,) = llm.generate([ids], params)
        if not arguments.json:
            for sample in whole.samples:
                print(sample.token_ids if sample.text is None else sample.text)
    sys.stdout.flush()
    assert whole is not None
    found = figures(
        whole, config=config, dtype=str(llm.model.dtype), kv=llm.kv, implementation=llm.implementation,
        batch=llm.options.max_batch, compile_s=compile_s, ceiling_gbps=read_ceiling_gbps,
    )  # fmt: skip
    if arguments.json:
        samples = [_plain(sample) for sample in whole.samples]
        print(json.dumps(dict(samples=samples, prompt_token_ids=whole.prompt_token_ids, figures=found)))
    else:
        print(said(found), file=sys.stderr)
        if arguments.dtype is None and llm.model.dtype != config.dtype:
            note = f"the checkpoint's {config.dtype} takes half the memory and longer, with --dtype={config.dtype}"
            print(f"Weights are held in {llm.model.dtype} on this CPU: {note}.", file=sys.stderr)


def _plain(completion) -> dict:
    found = dataclasses.asdict(dataclasses.replace(completion, samples=[]))
    return {k: v for k, v in found.items() if k not in ("samples", "prompt_token_ids", "timings")}


def _inspect(arguments) -> None:
    config = _config(arguments)
    if arguments.revision:
        if (folder := _folder(arguments)) is None:
            raise ValueError("--revision: expected --model, since random weights have none")
        revision = revision_of(folder)
        print(json.dumps(dict(revision=revision)) if arguments.json else revision)
        return
    dtype = arguments.dtype or config.dtype
    found = inspection.report(
        config,
        dtype=dtype,
        kv=kv_dtypes.parse("--kv-cache-dtype", arguments.kv_cache_dtype, dtype),
        context=config.max_positions if arguments.max_context is None else arguments.max_context,
        batch=arguments.batch,
        device=arguments.device,
    )
    print(json.dumps(found) if arguments.json else inspection.text(config, found))
