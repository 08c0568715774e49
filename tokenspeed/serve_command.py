"""`python -m tokenspeed serve`: its options, and what they start."""

import argparse
import functools
from pathlib import Path
from typing import Any

from tokenspeed.models import hf_config
from tokenspeed.models.config import ConfigError
from tokenspeed.server.options import OPTIONS, Option
from tokenspeed.weights.revision import revision_of
from tokenspeed.weights.tiny import folder_of


def add_to(commands) -> None:
    """The command and its options, to those of a parser."""
    serve = commands.add_parser(
        "serve", help="serve a model (OpenAI's API)", description="Serve a model: OpenAI's API, over HTTP."
    )
    serve.add_argument(
        "--config", metavar="FILE", help="a YAML mapping of these options, without dashes; those given here override it"
    )
    for option in OPTIONS:
        serve.add_argument(f"--{option.name}", default=argparse.SUPPRESS, help=option.help, **_how(option))
    serve.set_defaults(run=run)


def _how(option: Option) -> dict[str, Any]:
    if option.kind is bool:
        return dict(action=argparse.BooleanOptionalAction)
    if option.kind is list:
        return dict(action="append", metavar=option.metavar)
    return dict(type=option.kind, choices=option.choices, metavar=option.metavar)


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is told to end.

    Raises:
        ValueError, TypeError, OSError: an option, the file of options, or the folder is wrong.
    """
    try:
        from tokenspeed.server import config_file, serve
        from tokenspeed.server.admission import Bounds
        from tokenspeed.server.ceiling import ceiling
    except ModuleNotFoundError as error:
        raise ValueError(f"serve: {error.name} is not installed (pip install 'tokenspeed-jax[serve]')") from error
    given = {
        option.field: option.check(f"--{option.name}", getattr(arguments, option.field))
        for option in OPTIONS
        if option.field in arguments
    }
    read = {} if arguments.config is None else config_file.read(arguments.config)
    o = argparse.Namespace(**{option.field: option.default for option in OPTIONS} | read | given)
    folder = folder_of(o.model)
    if not folder.is_dir():
        raise ConfigError(f"--model: no folder {folder}")
    hf_config.from_folder(folder).with_activations(o.activations)  # what is wrong with it is told at once
    keys = serve.keys_of(o.api_key_file)
    _check_revision(folder, o.revision)

    def load():
        from tokenspeed.llm import LLM

        return LLM.from_pretrained(
            folder, dtype=o.dtype, max_context=o.max_model_len, max_batch=o.max_num_seqs,
            max_batched_tokens=o.max_num_batched_tokens, kv_bytes=o.kv_bytes, kv_dtype=o.kv_cache_dtype,
            implementation=o.implementation, batch_invariant=o.batch_invariant, activations=o.activations,
        )  # fmt: skip

    bounds = Bounds(
        concurrent=o.max_concurrent,
        queue=o.max_queue,
        queue_tokens=o.max_queue_tokens,
        max_tokens=o.max_tokens_cap,
        refuse=o.refuse_above_cap,
        timeout_s=o.request_timeout,
    )
    serve.serve(
        load, host=o.host, port=o.port, revision=o.revision, name=o.served_model_name, bounds=bounds,
        ceiling=functools.partial(ceiling, o.read_ceiling), keys=keys, body_bytes=o.max_body_bytes,
        origins=o.cors_origin, drain_s=o.drain_timeout, metrics_key=o.metrics_key, metrics_prefix=o.metrics_prefix,
    )  # fmt: skip


def _check_revision(folder: Path, pinned: str | None) -> None:
    if pinned is not None and (found := revision_of(folder)) != pinned:
        raise ValueError(f"revision: expected {pinned}, got {found} of {folder}")
