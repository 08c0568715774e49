"""Chat messages to a prompt, by the Jinja templates that a checkpoint has."""

import datetime
import json
from pathlib import Path

from tokenspeed.text.errors import TokenizerError, one_line


class ChatTemplates:
    """A checkpoint's templates by name; 'default' is the one for chats. Compiled when they are first used."""

    def __init__(self, sources: dict[str, str]):
        self._sources = dict(sources)
        self._compiled = {}

    def render(self, messages: list[dict], *, tools: list | None, **variables) -> str:
        """The prompt of these messages; see `Tokenizer.render_chat`."""
        _check_messages(messages)
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            found = ", ".join(sorted(self._sources)) or "none"
            raise TokenizerError(
                f"chat template: expected one in the checkpoint, named 'default' if several; got {found}"
            )
        if name not in self._compiled:
            self._compiled[name] = _compile(self._sources[name])
        try:
            return self._compiled[name].render(messages=messages, tools=tools, **variables)
        except Exception as error:  # a template can raise anything that its expressions can
            raise TokenizerError(f"chat template: {one_line(error)}") from error


def templates_of(value, file: Path) -> dict[str, str]:
    """Returns the templates by name, given a string or a list of {"name": string, "template": string}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else [None]
    found = {}
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "template")):
            raise TokenizerError(f"{file}: chat_template: expected a string or a list of objects with name, template")
        found[entry["name"]] = entry["template"]
    return found


def _check_messages(messages) -> None:
    if not isinstance(messages, list):
        raise TokenizerError(f"messages: expected a list, got {type(messages).__name__}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise TokenizerError(f"messages[{i}]: expected a dict, got {type(message).__name__}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise TokenizerError(f"messages[{i}].{key}: expected a str, got {type(message.get(key)).__name__}")


def _compile(template: str):
    """Returns the template, compiled in the environment that it was written for: that of the transformers library."""
    try:
        from jinja2.exceptions import SecurityError, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise TokenizerError("chat template: jinja2 is not installed; expected it from pip install jinja2") from error

    class Environment(ImmutableSandboxedEnvironment):
        # Jinja's own returns an undefined value, which prints as nothing.
        def unsafe_undefined(self, obj, attribute):
            raise SecurityError(f"access to {attribute!r} of {type(obj).__name__} is unsafe")

    def raise_exception(message):
        raise TemplateError(message)

    # Jinja's own escapes HTML, which a model has never seen in a prompt.
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return datetime.datetime.now().strftime(format)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise TokenizerError(f"chat template: {one_line(error)}") from error
