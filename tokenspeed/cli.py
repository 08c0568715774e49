"""The command line: generate text with a checkpoint, or look at it before anything is loaded."""

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from pallas_kernels import DTYPES, IMPLEMENTATIONS
from tokenspeed.models import hf_config, memory
from tokenspeed.models.config import ConfigError, ModelConfig
from tokenspeed.sampling.params import SamplingParams
from tokenspeed.weights.tiny import TINY

SAMPLING = {
    "n": int, "temperature": float, "top_p": float, "top_k": int, "min_p": float, "max_tokens": int, "min_tokens": int,
    "seed": int, "logprobs": int, "presence_penalty": float, "frequency_penalty": float, "repetition_penalty": float,
}  # fmt: skip
"""Fields of SamplingParams that are flags as they are."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tokenspeed", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", metavar="DIR", help="a checkpoint folder in the Hugging Face layout ('tiny': ours)")
    common.add_argument("--random-weights", metavar="CONFIG.json", help="no checkpoint: random weights of that config")
    common.add_argument("--dtype", choices=DTYPES, help="of weights and activations (the checkpoint's)")
    common.add_argument("--max-context", type=int, metavar="N", help="positions of a sequence (the model's limit)")
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    generate = commands.add_parser("generate", parents=[common], help="generate text", description="Generate text.")
    generate.add_argument("--prompt", help="the text to continue; '-' reads standard input")
    generate.add_argument("--prompt-ids", metavar="1,2,3", help="token ids instead of text; '-' too")
    generate.add_argument("--chat", action="store_true", help="the prompt is a user's message (chat template)")
    generate.add_argument("--system", help="a system message in front of it, with --chat")
    generate.add_argument("--implementation", choices=IMPLEMENTATIONS, help="of the kernels")
    generate.add_argument("--stop", action="append", help="a string that ends the text (repeatable)")
    generate.add_argument("--stop-token-ids", metavar="1,2", help="token ids that end it")
    generate.add_argument("--ignore-eos", action="store_true", help="the model's own end does not end it")
    generate.add_argument("--logit-bias", metavar="ID:BIAS,...", help="added to the logits of tokens")
    for name, kind in SAMPLING.items():
        generate.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS)
    generate.set_defaults(run=_generate)

    inspect = commands.add_parser("inspect", parents=[common], help="what a model is, and what it takes",
                                  description="What a model is and what it takes; loads nothing.")  # fmt: skip
    inspect.add_argument("--device", choices=tuple(memory.DEVICE_GB), help="plan for that GPU's memory")
    inspect.add_argument("--batch", type=int, default=1, help="sequences at a time (%(default)s)")
    inspect.set_defaults(run=_inspect)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0, or 2 after a one-line error on standard error."""
    arguments = parser().parse_args(argv)
    # The figures say which implementation ran.
    warnings.filterwarnings("ignore", message="pallas_kernels: no NVIDIA GPU here")
    try:
        return arguments.run(arguments)
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _folder(arguments) -> Path | None:
    if (arguments.model is None) == (arguments.random_weights is None):
        raise ValueError("--model, --random-weights: expected one of them")
    if arguments.model is None:
        return None
    return TINY if arguments.model == "tiny" else Path(arguments.model)


def _config(arguments) -> ModelConfig:
    folder = _folder(arguments)
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"--model: no folder {folder}")
        return hf_config.from_folder(folder)
    return hf_config.from_file(arguments.random_weights)


def _params(arguments) -> SamplingParams:
    given = {name: getattr(arguments, name) for name in SAMPLING if hasattr(arguments, name)}
    bias = None
    if arguments.logit_bias:
        try:
            pairs = [pair.split(":") for pair in arguments.logit_bias.split(",")]
            bias = {int(token): float(value) for token, value in pairs}
        except ValueError:
            raise ValueError(f"--logit-bias: expected ID:BIAS,..., got {arguments.logit_bias!r}") from None
    return SamplingParams(
        **(dict(max_tokens=256) | given),
        stop=arguments.stop,
        stop_token_ids=_ids("--stop-token-ids", arguments.stop_token_ids),
        ignore_eos=arguments.ignore_eos,
        logit_bias=bias,
    )


def _ids(name: str, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected token ids with commas between them, got {text!r}") from None


def _prompt(arguments, llm):
    if (arguments.prompt is None) == (arguments.prompt_ids is None):
        raise ValueError("--prompt, --prompt-ids: expected one of them")
    if arguments.prompt_ids is not None:
        return _ids("--prompt-ids", sys.stdin.read() if arguments.prompt_ids == "-" else arguments.prompt_ids)
    text = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not arguments.chat:
        return text
    if llm.tokenizer is None:
        raise ValueError("--chat: the folder has no tokenizer")
    messages = [dict(role="system", content=arguments.system)] if arguments.system else []
    rendered = llm.tokenizer.render_chat([*messages, dict(role="user", content=text)])
    return llm.tokenizer.encode(rendered, add_special_tokens=False)


def _generate(arguments) -> int:
    from tokenspeed.llm import LLM
    from tokenspeed.measure.read_ceiling import read_ceiling_gbps

    params, config, folder = _params(arguments), _config(arguments), _folder(arguments)
    options = dict(dtype=arguments.dtype, max_context=arguments.max_context, implementation=arguments.implementation)
    if folder is None:
        llm = LLM.random(config, **options)
    else:
        llm = LLM.from_pretrained(folder, progress=sys.stderr.isatty(), **options)
    prompt = llm.encode(_prompt(arguments, llm))
    llm.warm_up(len(prompt), params)  # or the time to the first token would be the compiler's
    if params.n == 1 and not arguments.json and llm.tokenizer is not None:
        for delta in llm.stream(prompt, params):
            print(delta.text, end="", flush=True)
            whole = delta.completion
        print()
    else:
        (whole,) = llm.generate([prompt], params)
        if not arguments.json:
            for sample in whole.samples:
                print(sample.token_ids if sample.text is None else sample.text)
    assert whole is not None
    figures = _figures(llm, whole, len(whole.samples), read_ceiling_gbps())
    if arguments.json:
        samples = [_plain(sample) for sample in whole.samples]
        print(json.dumps(dict(samples=samples, prompt_token_ids=whole.prompt_token_ids, figures=figures)))
    else:
        print(_said(figures), file=sys.stderr)
    return 0


def _plain(completion) -> dict:
    found = dataclasses.asdict(dataclasses.replace(completion, samples=[]))
    return {k: v for k, v in found.items() if k not in ("samples", "prompt_token_ids", "timings")}


def _figures(llm, whole, batch: int, ceiling_gbps: float) -> dict:
    """What the run took; figures of decode are null where there was no second token."""
    timings, dtype = whole.timings, str(llm.model.dtype)
    context = len(whole.prompt_token_ids) + len(whole.token_ids) / 2
    step_bytes = memory.decode_bytes(llm.model.config, dtype=dtype, context=context, batch=batch)
    rate = timings.tokens_per_s or None
    gbps = rate and step_bytes * rate / 1e9
    return dict(
        ttft_ms=round(1e3 * timings.ttft_s, 3),
        decode_tokens_per_s=rate and round(rate, 3),
        samples=batch,
        prompt_tokens=len(whole.prompt_token_ids),
        output_tokens=len(whole.token_ids),
        bytes_per_step=round(step_bytes),
        achieved_gbps=gbps and round(gbps, 3),
        read_ceiling_gbps=round(ceiling_gbps, 1),
        percent_of_ceiling=gbps and round(100 * gbps / ceiling_gbps, 2),
        implementation=llm.implementation,
        dtype=dtype,
    )


def _said(f: dict) -> str:
    parts = [f"{f['prompt_tokens']} + {f['output_tokens']} tokens", f"TTFT {f['ttft_ms']:.1f} ms"]
    if f["decode_tokens_per_s"]:
        parts.append(f"decode {f['decode_tokens_per_s']:.1f} tokens/s a sequence")
        parts.append(
            f"{f['bytes_per_step'] / 1e6:.2f} MB a step = {f['achieved_gbps']:.2f} GB/s, "
            f"{f['percent_of_ceiling']:.1f}% of this machine's measured {f['read_ceiling_gbps']:.0f} GB/s"
        )
    parts.append(f"{f['implementation']}, {f['dtype']}; compiled before")
    return "; ".join(parts)


def _inspect(arguments) -> int:
    config = _config(arguments)
    dtype = arguments.dtype or config.dtype
    context = arguments.max_context or config.max_positions
    plan = memory.plan(config, dtype=dtype, context=context, batch=arguments.batch, device=arguments.device)
    itemsize = plan.weights_bytes // config.num_parameters
    report = dict(
        architecture=dataclasses.asdict(config),
        parameters=config.num_parameters,
        dtype=dtype,
        weights_bytes=plan.weights_bytes,
        kv_bytes_per_token=config.kv_bytes_per_token(itemsize),
        decode_bytes_per_token=round(memory.decode_bytes(config, dtype=dtype, context=context)),
        context=context,
        batch=arguments.batch,
        device=arguments.device,
        memory=dataclasses.asdict(plan) | dict(total_bytes=plan.total_bytes, fits=plan.fits),
    )
    if arguments.json:
        print(json.dumps(report))
        return 0
    c = config
    windows = sorted({layer.window for layer in c.layers if layer.window is not None})
    lines = [
        f"{c.family}: {c.num_parameters / 1e9:.3f} B parameters, {c.num_layers} layers, D {c.d_model}, F {c.d_ff}, "
        f"{c.num_heads} query and {c.num_kv_heads} kv heads of {c.head_dim}, V {c.vocab_size}",
        f"RoPE {c.rope.kind}, theta {c.rope.theta:g}; positions {c.max_positions}; "
        f"window {', '.join(map(str, windows)) or 'none'}; tied embeddings {'yes' if c.tied else 'no'}; "
        f"biases qkv {_yes(c.qkv_bias)}, out {_yes(c.out_bias)}, MLP {_yes(c.mlp_bias)}",
        f"in {dtype}: weights {_size(plan.weights_bytes)}, KV {_size(report['kv_bytes_per_token'])} a token, "
        f"decode reads {_size(report['decode_bytes_per_token'])} a token at context {context}",
        f"device memory for {arguments.batch} x {context}: weights {_size(plan.weights_bytes)} + "
        f"KV {_size(plan.kv_bytes)} + workspace {_size(plan.workspace_bytes)} = {_size(plan.total_bytes)}",
    ]
    if plan.available_bytes is not None:
        verb = "fits" if plan.fits else "does NOT fit"
        lines.append(f"{verb} {arguments.device}: {_size(plan.available_bytes)} to use")
    print("\n".join(lines))
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.4g} {units[0]}"
