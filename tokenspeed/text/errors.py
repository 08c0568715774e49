"""The error of everything that makes text of tokens."""


class TokenizerError(ValueError):
    """A tokenizer file, text, id or chat that cannot be used; one line that says what was expected."""


def one_line(error: Exception) -> str:
    """An error's message without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
