"""`python -m tokenspeed serve`: its options, and what they start."""

import argparse

from pallas_kernels import DTYPES, IMPLEMENTATIONS
from tokenspeed.arguments import MAX_INT, integer
from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError
from tokenspeed.server.defaults import BODY_BYTES, DRAIN_S, METRICS_PREFIX
from tokenspeed.weights.tiny import folder_of


def add_to(commands) -> None:
    """The command and its options, to those of a parser."""
    serve = commands.add_parser(
        "serve", help="serve a model (OpenAI's API)", description="Serve a model: OpenAI's API, over HTTP."
    )
    serve.add_argument("--model", metavar="DIR", default="tiny", help="a checkpoint folder (default: ours, 'tiny')")
    serve.add_argument("--served-model-name", metavar="NAME", help="the one that requests may ask for (default: any)")
    serve.add_argument("--host", default="127.0.0.1", help="to listen at (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    serve.add_argument("--dtype", choices=DTYPES, help="of weights and activations (default: the checkpoint's)")
    serve.add_argument("--max-model-len", type=int, metavar="N", help="positions of a sequence (default: the model's)")
    serve.add_argument("--max-num-seqs", type=int, metavar="N", default=64, help="at a time (default: %(default)s)")
    serve.add_argument("--kv-bytes", type=int, metavar="N", help="of keys and values (default: what memory there is)")
    serve.add_argument("--batch-invariant", action="store_true", help="the same bits, whoever else is there; slower")
    serve.add_argument("--implementation", choices=IMPLEMENTATIONS, help="of the kernels (default: by device)")
    serve.add_argument("--max-concurrent", type=int, metavar="N", help="requests under way (default: any number)")
    serve.add_argument("--max-queue", type=int, metavar="N", help="requests that wait for their first token")
    serve.add_argument("--max-queue-tokens", type=int, metavar="N", help="tokens of the prompts that wait")
    serve.add_argument("--max-tokens-cap", type=int, metavar="N", help="tokens that a request may ask for")
    serve.add_argument("--refuse-above-cap", action="store_true", help="refuse what asks for more (default: cut it)")
    serve.add_argument("--request-timeout", type=int, metavar="S", help="seconds from a request to its end")
    serve.add_argument("--max-body-bytes", type=int, metavar="N", default=BODY_BYTES, help="(default: %(default)s)")
    serve.add_argument("--metrics-prefix", metavar="NAME", default=METRICS_PREFIX, help="(default: %(default)s)")
    serve.add_argument("--metrics-key", action="store_true", help="/metrics needs an API key too")
    serve.add_argument("--drain-timeout", type=int, metavar="S", default=DRAIN_S, help="seconds (default: %(default)s)")
    serve.add_argument("--api-key-file", metavar="FILE", help="a key a line (or TOKENSPEED_API_KEYS=A,B)")
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is told to end.

    Raises:
        ValueError, TypeError, OSError: an option, or the folder, is wrong.
    """
    try:
        from tokenspeed.server import serve
        from tokenspeed.server.admission import Bounds
    except ModuleNotFoundError as error:
        raise ValueError(f"serve: {error.name} is not installed (pip install 'tokenspeed-jax[serve]')") from error
    folder = folder_of(arguments.model)
    if not folder.is_dir():
        raise ConfigError(f"--model: no folder {folder}")
    hf_config.from_folder(folder)  # what is wrong with it is told at once

    def load():
        from tokenspeed.llm import LLM

        return LLM.from_pretrained(
            folder, dtype=arguments.dtype, max_context=arguments.max_model_len, max_batch=arguments.max_num_seqs,
            kv_bytes=arguments.kv_bytes, batch_invariant=arguments.batch_invariant,
            implementation=arguments.implementation,
        )  # fmt: skip

    for name in (
        "max_concurrent", "max_queue", "max_queue_tokens", "max_tokens_cap", "request_timeout", "max_body_bytes",
        "drain_timeout",
    ):  # fmt: skip
        if (value := getattr(arguments, name)) is not None:
            integer(f"--{name.replace('_', '-')}", value, 1, MAX_INT)
    bounds = Bounds(
        concurrent=arguments.max_concurrent,
        queue=arguments.max_queue,
        queue_tokens=arguments.max_queue_tokens,
        max_tokens=arguments.max_tokens_cap,
        refuse=arguments.refuse_above_cap,
        timeout_s=arguments.request_timeout,
    )
    serve.serve(
        load, host=arguments.host, port=arguments.port, name=arguments.served_model_name, bounds=bounds,
        keys=serve.keys_of(arguments.api_key_file), body_bytes=arguments.max_body_bytes,
        drain_s=arguments.drain_timeout, metrics_key=arguments.metrics_key, metrics_prefix=arguments.metrics_prefix,
    )  # fmt: skip
