"""Chat messages to a prompt, by the Jinja templates that a checkpoint has."""

from pathlib import Path

from tokenspeed.text.errors import TokenizerError
from tokenspeed.text.renderer import Renderer

RENDERER = Renderer()
"""Of all checkpoints of this process."""


class ChatTemplates:
    """A checkpoint's templates by name; 'default' is the one for chats."""

    def __init__(self, sources: dict[str, str], renderer: Renderer = RENDERER):
        self._sources, self._renderer = dict(sources), renderer

    def render(self, messages: list[dict], *, tools: list | None, **variables) -> str:
        """The prompt of these messages; see `Tokenizer.render_chat`."""
        _check_messages(messages)
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            found = ", ".join(sorted(self._sources)) or "none"
            raise TokenizerError(
                f"chat_template: expected one in the checkpoint, named 'default' if several; got {found}"
            )
        return self._renderer.render(self._sources[name], dict(variables, messages=messages, tools=tools))


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
