"""The tokenizer of a checkpoint folder: text to token ids and back, and chat messages to a prompt."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from tokenspeed.messages import listed, one_line, shown
from tokenspeed.models.fields import read_json, read_text
from tokenspeed.text.chat_template import ChatTemplates, templates_of
from tokenspeed.text.errors import TokenizerError, of_library

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """A Hugging Face fast tokenizer (tokenizer.json) with what tokenizer_config.json says of it.

    Attributes:
        vocab_size: one past the largest token id, in tokens.
        bos_token, eos_token: their text, or None where the checkpoint names none.
        bos_id, eos_id: their ids, or None.
        decoder: the decoder of tokenizer.json as parsed JSON, or None where tokens are joined by spaces.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: dict[str, str] | None = None,
        add_bos_token: bool = False,
        chat_templates: dict[str, str] | None = None,
    ):
        """Wraps `backend`, which must not be changed afterwards; a checkpoint folder is read by `from_folder`.

        Args:
            backend: the tokenizer proper. Its truncation and padding are switched off: a prompt is never cut silently.
            special_tokens: their texts by name, e.g. {"bos_token": "<s>"}.
            add_bos_token: whether `encode` adds BOS where the post-processor of `backend` does not.
            chat_templates: Jinja sources by name; 'default' is the one for chats.

        Raises:
            TokenizerError: BOS or EOS is not in the vocabulary, or BOS is to be added and not named.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_tokens = dict(special_tokens or {})
        self._chat_templates = ChatTemplates(chat_templates or {})
        # The texts, not the ids: the library, too, skips special tokens by their text.
        self._special_texts = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_token, self.bos_id = self._named("bos_token")
        self.eos_token, self.eos_id = self._named("eos_token")
        self.decoder = None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
        if add_bos_token and self.bos_id is None:
            raise TokenizerError("tokenizer_config.json: add_bos_token is true: expected a bos_token, got none")
        self._add_bos_token = add_bos_token

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer | None":
        """Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json, chat_template.jinja.

        Returns:
            The tokenizer, or None where the folder has none; token ids still work then.

        Raises:
            TokenizerError: no folder, a broken file, or a tokenizer in a format other than tokenizer.json.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: expected the folder of a checkpoint")
        file = folder / "tokenizer.json"
        if not file.exists():
            _refuse_other_formats(folder)
            return None
        with of_library(f"{file}: expected a Hugging Face tokenizer"):
            backend = tokenizers.Tokenizer.from_str(read_text(file, TokenizerError))
            around = backend.encode("").ids  # what a broken post-processor would only say of the first prompt
        config_file = folder / "tokenizer_config.json"
        config = _read_object(config_file)
        _check_config(config, config_file, backend)
        map_file = folder / "special_tokens_map.json"
        special_tokens = _special_tokens(_read_object(map_file), map_file) | _special_tokens(config, config_file)
        chat_templates = templates_of(config.get("chat_template"), config_file)
        template_file = folder / "chat_template.jinja"
        if template_file.exists():
            chat_templates["default"] = read_text(template_file, TokenizerError)
        tokenizer = cls(
            backend,
            special_tokens=special_tokens,
            add_bos_token=bool(config.get("add_bos_token")),
            chat_templates=chat_templates,
        )
        if config.get("add_eos_token") and tokenizer.eos_id not in around:
            raise TokenizerError(
                f"{config_file}: add_eos_token: true is not supported where tokenizer.json does not add it: "
                "a prompt that ends with EOS has nothing to continue"
            )
        return tokenizer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of `text`.

        With `add_special_tokens`, the post-processor of tokenizer.json adds its own, and BOS is added if
        tokenizer_config.json asks for it. BOS is never doubled: not where both ask, and not where the text, as a chat
        template writes it, already begins with it.

        Raises:
            TokenizerError: `text` is not a str of valid Unicode (a lone surrogate is not), or tokenizer.json fails at
                it.
        """
        ids = self._encode(text, add_special_tokens)
        bos = self.bos_id
        if not add_special_tokens or bos is None:
            return ids
        if ids[:2] == [bos, bos]:
            own = self._encode(text, False)
            if own[0] == bos and ids[: len(own) + 1] == [bos, *own]:
                return ids[1:]
        if self._add_bos_token and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids`, as the decoder of tokenizer.json has it.

        Ids that the tokenizer does not know (a model's vocabulary may be padded) give no text. The setting
        clean_up_tokenization_spaces is not followed: it edits across tokens, so a stream could not keep to it.

        Raises:
            TokenizerError: an id is not an int >= 0.
        """
        with of_library("tokenizer.json: decodes these ids with an error"):
            try:
                return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
            except (TypeError, OverflowError) as error:
                raise TokenizerError(f"ids: expected integers in [0, 2**32): {one_line(error)}") from error

    def pieces(self, ids: Iterable[int], skip_special_tokens: bool = True) -> list[str]:
        """Returns the raw texts of the tokens that `decode` hands to its decoder: fewer than `ids` where it skips any.

        Raises:
            TokenizerError: an id is not an int >= 0.
        """
        tokens = [self._token(id) for id in ids]
        skipped = self._special_texts if skip_special_tokens else ()
        return [token for token in tokens if token is not None and token not in skipped]

    def render_chat(
        self,
        messages: list[dict],
        *,
        add_generation_prompt: bool = True,
        tools: list | None = None,
        **variables,
    ) -> str:
        """Returns the prompt that the checkpoint's chat template makes of `messages`.

        The template runs in Jinja's immutable sandbox, in a process of limited time, memory and output (`Renderer`).
        Its own text usually begins with BOS; `encode` knows that.

        Args:
            messages: dicts with at least a str 'role' and a str 'content'.
            add_generation_prompt: whether to end with the header of the assistant's turn.
            tools: what the template is to describe to the model; where the checkpoint has a template named
                'tool_use', that one is taken.
            **variables: further variables of the template, of what JSON has; they win over special tokens.

        Raises:
            TokenizerError: no template, messages of another form, a broken limit, or an error in the template, among
                them what it refuses by raise_exception.
        """
        return self._chat_templates.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **self._special_tokens | variables
        )

    def _named(self, name: str) -> tuple[str | None, int | None]:
        token = self._special_tokens.get(name)
        if token is None:
            return None, None
        id = self._backend.token_to_id(token)
        if id is None:
            raise TokenizerError(f"{name}: expected a token of tokenizer.json, got {shown(token)}")
        return token, id

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        with of_library("tokenizer.json: encodes this text with an error"):
            try:
                if not isinstance(text, str):  # or a pair would be one prompt
                    raise TypeError
                # Of a batch, since that lets other threads run.
                return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
            except TypeError as error:
                raise TokenizerError(f"text: expected a str of valid Unicode, got {text!a:.80}") from error

    def _token(self, id: int) -> str | None:
        try:
            return self._backend.id_to_token(id)
        except (TypeError, OverflowError) as error:
            raise TokenizerError(f"ids: expected integers in [0, 2**32), got {id!r}") from error


def _read_object(file: Path) -> dict:
    return read_json(file, TokenizerError) if file.exists() else {}


def _check_config(config: dict, file: Path, backend: tokenizers.Tokenizer) -> None:
    """Raises a TokenizerError where tokenizer_config.json asks for what tokenizer.json does not do."""
    for name in ("add_bos_token", "add_eos_token", "split_special_tokens"):
        if not isinstance(config.get(name), bool | None):
            raise TokenizerError(f"{file}: {name}: expected true or false, got {shown(config[name])}")
    for name in ("split_special_tokens", "auto_map"):
        if config.get(name):
            raise TokenizerError(f"{file}: {name}: {shown(config[name])} is not supported")
    tokens = config.get("added_tokens_decoder") or {}
    if not isinstance(tokens, dict):
        raise TokenizerError(f"{file}: added_tokens_decoder: expected an object, got {shown(tokens)}")
    for id, token in tokens.items():
        if str(_id_of(token, backend)) != id:
            raise TokenizerError(
                f"{file}: added_tokens_decoder.{listed([id])}: expected a token of tokenizer.json, got {shown(token)}"
            )
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(name) or []
        if not isinstance(tokens, list | dict):
            raise TokenizerError(f"{file}: {name}: expected a list or an object, got {shown(tokens)}")
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            if _id_of(token, backend) is None:
                raise TokenizerError(f"{file}: {name}: expected tokens of tokenizer.json, got {shown(token)}")


def _text_of(token) -> str | None:
    """Of a token given as a string or {"content": string}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _id_of(token, backend: tokenizers.Tokenizer) -> int | None:
    text = _text_of(token)
    return None if text is None else backend.token_to_id(text)


def _refuse_other_formats(folder: Path) -> None:
    for file in sorted(folder.glob("tokenizer*")):
        if file.name == "tokenizer.model":
            raise TokenizerError(f"{file}: sentencepiece is not read; expected it converted to tokenizer.json")
        if file.suffix in (".pkl", ".pickle"):
            raise TokenizerError(f"{file}: a pickle is never read, it can run code; expected tokenizer.json")


def _special_tokens(config: dict, file: Path) -> dict[str, str]:
    """Returns the named tokens, each given as a string, {"content": string} or null."""
    found = {}
    for name in _TOKEN_NAMES:
        value = config.get(name)
        if value is None:
            continue
        text = _text_of(value)
        if text is None:
            raise TokenizerError(f"{file}: {name}: expected a string or an object with content, got {shown(value)}")
        found[name] = text
    return found
