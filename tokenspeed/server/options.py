"""The options of `serve`, as the command line and a YAML file have them."""

import dataclasses
import re
from typing import Any

from pallas_kernels import DTYPES, IMPLEMENTATIONS, ROUNDED_ACTIVATIONS
from tokenspeed.arguments import MAX_INT, boolean, integer, number, one_of
from tokenspeed.messages import shown
from tokenspeed.models.kv_dtypes import AUTO, CHOICES, FORM
from tokenspeed.server.defaults import BODY_BYTES, DRAIN_S, METRICS_PREFIX


@dataclasses.dataclass(frozen=True)
class Option:
    """
    Attributes:
        name: the long one, without dashes in front. kind: of its value; a list is one of strings.
        text: what help says of it. default: None where there is no other.
        metavar: of help. choices: that a string has, or None. low, high: the range of an integer.
        form: of strings: what is expected, and a regular expression for it.
    """

    name: str
    kind: type
    text: str
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    low: int = 1
    high: int = MAX_INT
    form: tuple[str, str] = "", ".*"

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def help(self) -> str:
        return self.text if self.default in (None, False, ()) else f"{self.text} (default: {self.default})".strip()

    def check(self, where: str, value: Any) -> Any:
        """A value that stands at `where`.

        Raises:
            ValueError, TypeError: it is not of the option's kind, or outside its range.
        """
        if self.kind is int:
            return integer(where, value, self.low, self.high)
        if self.kind is float:
            return number(where, value, 0, float(MAX_INT))
        if self.kind is bool:
            return boolean(where, value)
        if self.choices is not None:
            return one_of(where, value, self.choices)
        strings = value if self.kind is list else [value]
        if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
            wanted = "a list of strings" if self.kind is list else "a string"
            raise TypeError(f"{where}: expected {wanted}, got {shown(value)}")
        for one in strings:
            if not re.fullmatch(self.form[1], one, re.DOTALL):
                raise ValueError(f"{where}: expected {self.form[0]}, got {shown(one)}")
        return value


# fmt: off
OPTIONS = (
    Option("model", str, "a checkpoint folder; 'tiny' is ours", "tiny", "DIR"),
    Option(
        "revision", str, "refuse another content of the folder: see `inspect --revision`", metavar="SHA256",
        form=("64 hex digits", "[0-9a-f]{64}"),
    ),
    Option("served-model-name", str, "the one that requests may ask for (default: any)", metavar="NAME"),
    Option("host", str, "to listen at", "127.0.0.1"),
    Option("port", int, "0 takes a free one", 8000, low=0, high=65535),
    Option("dtype", str, "of weights and activations (default: the checkpoint's)", choices=DTYPES),
    Option("max-model-len", int, "positions of a sequence (default: the model's)", metavar="N"),
    Option("max-num-seqs", int, "at a time", 64, "N"),
    Option(
        "max-num-batched-tokens", int, "in a step, of prompts and decode (default: 1024 of prompts beside decode)",
        metavar="N", low=64,
    ),
    Option("kv-bytes", int, "of keys and values (default: what memory there is)", metavar="N", high=1 << 50),
    Option(
        "kv-cache-dtype", str, f"of keys and values: {FORM}", AUTO, "K[/V]",
        form=(FORM, "({0})(/({0}))?".format("|".join(CHOICES))),
    ),
    Option("activations", str, "of int8 and int4 weights: rounded", choices=ROUNDED_ACTIVATIONS),
    Option("implementation", str, "of the kernels (default: by device)", choices=IMPLEMENTATIONS),
    Option("batch-invariant", bool, "the same bits, whoever else is there; slower", False),
    Option("max-concurrent", int, "requests under way (default: any number)", metavar="N"),
    Option("max-queue", int, "requests that wait for their first token", metavar="N"),
    Option("max-queue-tokens", int, "tokens of the prompts that wait", metavar="N"),
    Option("max-tokens-cap", int, "tokens that a request may ask for", metavar="N"),
    Option("refuse-above-cap", bool, "refuse what asks for more (default: cut it)", False),
    Option("request-timeout", int, "seconds from a request to its end", metavar="S"),
    Option("max-body-bytes", int, "", BODY_BYTES, "N"),
    Option(
        "cors-origin", list, "whose pages may call this server too, '*' for all (repeatable)", (), "ORIGIN",
        form=("'*' or http(s)://HOST[:PORT]", r"\*|https?://[^/\s]+"),
    ),
    Option(
        "metrics-prefix", str, "", METRICS_PREFIX, "NAME",
        form=("letters, digits and underscores", "[a-zA-Z_][a-zA-Z0-9_]*"),
    ),
    Option("metrics-key", bool, "/metrics needs an API key too", False),
    Option("read-ceiling", float, "GB/s of this device's memory; 0: not known (default: measured)", metavar="GBPS"),
    Option("drain-timeout", int, "seconds", DRAIN_S, "S"),
    Option("api-key-file", str, "a key a line (or TOKENSPEED_API_KEYS=A,B)", metavar="FILE"),
)
# fmt: on
