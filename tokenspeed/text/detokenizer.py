"""Text from a stream of token ids, piece by piece.

A state machine that gives out text as soon as no later token can change it, at a cost per token that does not grow with
the text.
"""

import codecs
import re
from collections.abc import Callable, Iterable

from tokenspeed.text.tokenizer import Tokenizer


class Detokenizer:
    """Decodes a stream: the texts of all `add` and of `finish`, joined, are `tokenizer.decode` of all the ids.

    That holds for any ids and however they are cut, because the steps of the tokenizer's decoder are followed one by
    one, each with the little state that it has between tokens. So it also settles what is held back: the bytes of an
    unfinished character; with byte fallback the whole run of byte tokens, since one bad byte makes every byte of its
    run a U+FFFD. Decoders with other steps than LLaMA-like checkpoints have (WordPiece, CTC, BPE suffixes,
    regular expressions) are not followed: their text comes from `finish`, all of it.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._steps = _steps(tokenizer.decoder)
        self._held_ids: list[int] = []

    def add(self, ids: Iterable[int]) -> str:
        """Returns the text that became certain with `ids`; '' if none did."""
        if self._steps is None:
            self._held_ids.extend(ids)
            return ""
        pieces = self._tokenizer.pieces(ids, self._skip_special_tokens)
        for step in self._steps:
            pieces = step.feed(pieces)
        return "".join(pieces)

    def finish(self) -> str:
        """Returns the rest of the text; called once, after the last `add`."""
        if self._steps is None:
            return self._tokenizer.decode(self._held_ids, self._skip_special_tokens)
        pieces = []
        for step in self._steps:
            pieces = step.feed(pieces) + step.end()
        return "".join(pieces)


# The steps of a decoder. `feed` takes the next pieces and returns those that are certain; `end` returns the others.
# After a step that fuses all pieces into one, what passes on are fragments of that one piece.


class _Each:
    """A step that changes each piece by itself."""

    def __init__(self, change: Callable[[str], str]):
        self._change = change

    def feed(self, pieces: list[str]) -> list[str]:
        return [self._change(piece) for piece in pieces]

    def end(self) -> list[str]:
        return []


class _First:
    """A step that treats the first piece in one way and all others in another."""

    def __init__(self, first: Callable[[str], str], others: Callable[[str], str]):
        self._change = first
        self._others = others

    def feed(self, pieces: list[str]) -> list[str]:
        changed = []
        for piece in pieces:
            changed.append(self._change(piece))
            self._change = self._others
        return changed

    def end(self) -> list[str]:
        return []


class _StripStart:
    """Takes up to `count` characters `content` off the start of the one fused piece."""

    def __init__(self, content: str, count: int):
        self._content = content
        self._count = count

    def feed(self, pieces: list[str]) -> list[str]:
        return [self._strip(piece) if self._count else piece for piece in pieces]

    def end(self) -> list[str]:
        return []

    def _strip(self, piece: str) -> str:
        rest = _strip_start(piece, self._content, self._count)
        self._count = 0 if rest else self._count - len(piece)
        return rest


class _ByteFallback:
    """Turns runs of tokens like <0xE2> into text, or into a U+FFFD for each if the run is not UTF-8."""

    _BYTE = re.compile("<0x([+0-9A-Fa-f][0-9A-Fa-f])>")  # with a sign, as the library reads them

    def __init__(self):
        self._run = bytearray()

    def feed(self, pieces: list[str]) -> list[str]:
        out = []
        for piece in pieces:
            byte = self._BYTE.fullmatch(piece)
            if byte:
                self._run.append(int(byte[1], 16))
            else:
                out += self.end()
                out.append(piece)
        return out

    def end(self) -> list[str]:
        run, self._run = self._run, bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _ByteLevel:
    """Turns pieces whose characters stand for bytes into text, fused."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, pieces: list[str]) -> list[str]:
        return [self._decoder.decode(b"".join(map(_piece_bytes, pieces)))]

    def end(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


def _byte_of_character() -> dict[str, int]:
    """Returns GPT-2's table: printable Latin-1 stands for itself, the other bytes for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _piece_bytes(piece: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in piece])
    except KeyError:  # an added token, written as it is
        return piece.encode()


def _strip_start(piece: str, content: str, count: int) -> str:
    for _ in range(count):
        piece = piece.removeprefix(content)
    return piece


def _steps(decoder: dict | None) -> list | None:
    """Returns the steps of a decoder given as JSON, fresh, or None if it has one that is not followed."""
    if decoder is None:  # the library's behaviour without a decoder
        return [_First(str, lambda piece: " " + piece)]
    steps = []
    fused = False
    for spec in _flat(decoder):
        step = _fused_step(spec) if fused else _step(spec)
        if step is None:
            return None
        steps.append(step)
        fused = fused or spec["type"] in ("Fuse", "ByteLevel")
    return steps


def _flat(decoder: dict) -> list[dict]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [spec for inner in decoder["decoders"] for spec in _flat(inner)]


def _step(spec: dict):
    match spec:
        case {"type": "Fuse"}:
            return _Each(str)
        case {"type": "ByteLevel"}:
            return _ByteLevel()
        case {"type": "ByteFallback"}:
            return _ByteFallback()
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": new} if old:
            return _Each(lambda piece: piece.replace(old, new))
        case {"type": "Strip", "content": content, "start": start, "stop": 0}:
            return _Each(lambda piece: _strip_start(piece, content, start))
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            first = " " if scheme == "never" else ""
            return _First(lambda piece: piece.replace(mark, first), lambda piece: piece.replace(mark, " "))
    return None


def _fused_step(spec: dict):
    match spec:
        case {"type": "Fuse"}:
            return _Each(str)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": new} if len(old) == 1:
            return _Each(lambda piece: piece.replace(old, new))
        case {"type": "Strip", "content": content, "start": start, "stop": 0}:
            return _StripStart(content, start)
    return None
