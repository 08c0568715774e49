"""What error messages show of values, names and other errors: one line each, and short whatever they are."""

import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr(maxlevel=3, maxstring=80, maxother=80, maxlong=40)


def shown(value: object) -> str:
    """A value."""
    return " ".join(_SHORT.repr(value).split())


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names, the first `most` of them; those that would break the line as literals."""
    names = sorted(names)
    texts = [name if name.isprintable() and len(name) <= 200 else shown(name) for name in names[:most]]
    return ", ".join(texts) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """An error's message, or its class where it has none."""
    return " ".join(str(error).split())[:500] or type(error).__name__
