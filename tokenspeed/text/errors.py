"""The error of everything that makes text of tokens."""

import contextlib
from collections.abc import Iterator

from tokenspeed.messages import one_line


class TokenizerError(ValueError):
    """A tokenizer file, text, id or chat that cannot be used; one line that says what was expected."""


@contextlib.contextmanager
def of_library(what: str) -> Iterator[None]:
    """A context in which any error of the tokenizers library becomes a TokenizerError that begins with `what`."""
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{what}: {one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, which has no public class
            raise
        raise TokenizerError(f"{what}: {one_line(error)}") from error
