"""Streams against the whole: pieces of text against `decode`, stop strings against a search after every character."""

import functools
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tokenspeed.text.detokenizer import Detokenizer
from tokenspeed.text.stop_strings import StopStrings
from tokenspeed.text.stream import TextStream
from tokenspeed.text.tokenizer import Tokenizer

STORIES = Path(__file__).resolve().parents[4] / "shared/checkpoints/stories260K"
# The character that stands for each byte in byte-level pieces: these two orders are those of GPT-2's table.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE = dict(zip(PRINTABLE, map(chr, PRINTABLE))) | dict(
    zip(sorted({*range(256)} - {*PRINTABLE}), map(chr, range(256, 324)))
)
WORDS = ["Hello", "Hel", "lo", ",", " ", "  ", "日本", "日", "é", "\ufffd", " .", " do not", ".", "\n", "h"]


def wrap(model, decoder=None, pre_tokenizer=None) -> Tokenizer:
    """A tokenizer with a special token, and with added tokens: one of characters that no byte table has."""
    backend = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens(["[日 x]", "added"])
    return Tokenizer(backend)


def id_of(tokenizer: Tokenizer, token: str) -> int | None:
    """The id of a token by its raw text."""
    return ids_of(tokenizer).get(token)


@functools.cache
def ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    return {
        piece: id for id in range(tokenizer.vocab_size) for piece in tokenizer.pieces([id], skip_special_tokens=False)
    }


def vocabulary(words) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def byte_level() -> Tokenizer:
    """A token for every byte, which is what it encodes to, and longer ones, one cut within a character."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    longer = [split.pre_tokenize_str(word)[0][0] for word in WORDS]
    pieces = vocabulary([*BYTE.values(), *longer, longer[6][:-1], ""])
    return wrap(models.BPE(pieces, []), decoders.ByteLevel(), split)


def sentencepiece(decoder) -> Tokenizer:
    """A token for every byte, and words with their spaces marked, an empty one among them."""
    words = [word.replace(" ", "▁") for word in WORDS]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = vocabulary([*bytes_, *words, "▁Hello", "▁", "▁▁a▁", "", "<0xZZ>", "<0x+A>"])
    return wrap(models.BPE(pieces, [], byte_fallback=True), decoder, pre_tokenizers.Metaspace(prepend_scheme="never"))


def llama(start: int = 1):
    strip = [decoders.Strip(" ", start, 0)] if start else []
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def metaspace(scheme: str = "always"):
    return decoders.Metaspace(prepend_scheme=scheme)


# The decoders that are followed step by step, so that their text streams.
STREAMING = {
    "byte-level": byte_level(),
    "llama": sentencepiece(llama()),
    "gemma": sentencepiece(llama(start=0)),
    "strip 3": sentencepiece(llama(start=3)),
    "metaspace": sentencepiece(metaspace()),
    "metaspace first": sentencepiece(metaspace("first")),
    "metaspace never": sentencepiece(metaspace("never")),
    "metaspace of bytes": sentencepiece(decoders.Sequence([decoders.ByteFallback(), metaspace()])),
    "bytes of both kinds": sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel()])),
    "strip each": sentencepiece(decoders.Sequence([decoders.Strip("H", 1, 0), decoders.Replace("lo", "")])),
    "fused": sentencepiece(decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", "<>"), decoders.Fuse()])),
    "unigram": wrap(
        models.Unigram([("▁", -1.0), *((word.replace(" ", "▁"), -2.0) for word in WORDS)], unk_id=0), metaspace()
    ),
    "words": wrap(models.WordLevel(vocabulary([*WORDS, ""]), unk_token="h")),
}
# Those with a step that is not followed; their text comes at the end.
WHOLE = {
    "wordpiece": sentencepiece(decoders.WordPiece(prefix="H")),
    "bpe": sentencepiece(decoders.BPEDecoder(suffix="o")),
    "ctc": sentencepiece(decoders.CTC(pad_token="h")),
    "regex": sentencepiece(decoders.Sequence([decoders.Fuse(), decoders.Replace(tokenizers.Regex("l+o?"), "L")])),
    "fused replace": sentencepiece(decoders.Sequence([decoders.Fuse(), decoders.Replace("ll", "L")])),
}
ALL = STREAMING | WHOLE


def chunks(draw, items):
    """Cuts `items` anywhere, empty chunks included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=6)))
    return [items[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(items)])]


@st.composite
def streams(draw, tokenizer: Tokenizer):
    """Any ids in any chunks; unknown ids, special ones and whole characters of several tokens are all likely."""
    whole = [
        tokenizer.encode(character, add_special_tokens=False) for character in ("é", "日本", "👩", " Hello", "\ufffd")
    ]
    bytes_ = [[id] for name in ("<0xE6>", "<0x97>", "<0xA5>", "<0x20>") if (id := id_of(tokenizer, name)) is not None]
    special = [[id_of(tokenizer, "<s>")], [id_of(tokenizer, "[日 x]")], [tokenizer.vocab_size + 5]]
    some = st.sampled_from(whole + bytes_ + special) | st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=3)
    ids = [id for part in draw(st.lists(some, max_size=20)) for id in part]
    return chunks(draw, ids)


@pytest.mark.slow
@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_the_pieces_are_the_whole(name, skip_special_tokens):
    tokenizer = ALL[name]

    @settings(deadline=None, max_examples=50)
    @given(streams(tokenizer))
    def check(parts):
        detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        text = "".join(map(detokenizer.add, parts)) + detokenizer.finish()
        assert text == tokenizer.decode([id for part in parts for id in part], skip_special_tokens)

    check()


@pytest.mark.parametrize("name", ALL)
def test_spaces_at_the_start(name):
    tokenizer = ALL[name]
    space = tokenizer.encode(" ", add_special_tokens=False)
    assert space
    for count in range(6):
        ids = [*space * count, id_of(tokenizer, "lo"), *space, id_of(tokenizer, "lo")]
        detokenizer = Detokenizer(tokenizer)
        assert "".join(detokenizer.add([id]) for id in ids) + detokenizer.finish() == tokenizer.decode(ids)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(b"a\x80\xa0\xbf\xc0\xc3\xe0\xe6\xed\xef\xbd\xbb\xf0\x9f\x90\xf4\xff"), max_size=12))
def test_broken_utf8_is_replaced_as_the_library_does(data):
    """The bytes at which UTF-8 decoders differ: overlong forms, surrogates, beyond U+10FFFF, cut short."""
    tokenizer = STREAMING["byte-level"]
    ids = [id_of(tokenizer, BYTE[byte]) for byte in data]
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.add([id]) for id in ids) + detokenizer.finish() == tokenizer.decode(ids)


def test_characters_stream_as_they_are_completed():
    tokenizer = STREAMING["byte-level"]
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode("aé👩\ufffdz", add_special_tokens=False)
    assert [detokenizer.add([id]) for id in ids] == ["a", "", "é", "", "", "", "👩", "", "", "\ufffd", "z"]
    assert detokenizer.finish() == ""


def test_two_steps_can_hold_back_at_the_end():
    tokenizer = STREAMING["bytes of both kinds"]
    # The run is '©©', which stands for two bytes A9; with the E9 that 'é' stands for they make one character.
    ids = [id_of(tokenizer, "é"), *(id_of(tokenizer, f"<0x{byte:02X}>") for byte in "©©".encode())]
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.add(ids) == ""
    assert detokenizer.finish() == tokenizer.decode(ids) == b"\xe9\xa9\xa9".decode()


def test_an_impossible_byte_is_not_waited_for():
    tokenizer = STREAMING["byte-level"]
    detokenizer = Detokenizer(tokenizer)
    bad = id_of(tokenizer, BYTE[0xFF])
    assert [detokenizer.add([bad]) for _ in range(3)] == ["\ufffd"] * 3


@pytest.mark.parametrize("name", ["llama", "metaspace of bytes"])
def test_runs_of_byte_tokens_are_held_until_they_end(name):
    tokenizer = STREAMING[name]
    detokenizer = Detokenizer(tokenizer)
    run = [id_of(tokenizer, f"<0x{byte:02X}>") for byte in "日本".encode()]
    word, special, dot = id_of(tokenizer, "▁Hello"), id_of(tokenizer, "<s>"), id_of(tokenizer, ".")
    assert detokenizer.add([word]) == "Hello"
    assert detokenizer.add([*run[:3], special]) == ""
    assert detokenizer.add(run[3:]) == ""
    assert detokenizer.add([word]) == "日本 Hello"
    # One byte more, and the characters that came before it are no characters.
    assert detokenizer.add([*run, run[0]]) == ""
    assert detokenizer.add([dot]) == "\ufffd" * 7 + "."
    assert detokenizer.add(run[:2]) == ""
    assert detokenizer.finish() == "\ufffd\ufffd"


@pytest.mark.parametrize("name", STREAMING)
def test_ordinary_tokens_are_not_held(name):
    tokenizer = STREAMING[name]
    lo, comma = id_of(tokenizer, "lo"), id_of(tokenizer, ",")
    detokenizer = Detokenizer(tokenizer)
    for count in range(1, 5):
        detokenizer.add([lo])
        before = tokenizer.decode([lo, comma] * (count - 1) + [lo])
        text = detokenizer.add([comma])
        assert before + text == tokenizer.decode([lo, comma] * count)
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("name", WHOLE)
def test_decoders_that_are_not_followed_give_their_text_at_the_end(name):
    tokenizer = WHOLE[name]
    ids = tokenizer.encode("Hello", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.add(ids) == ""
    assert detokenizer.finish() == tokenizer.decode(ids)


class Counting:
    """Stands before a tokenizer and counts the tokens that are looked at."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.decoder, self.looked_at = tokenizer, tokenizer.decoder, 0

    def pieces(self, ids, skip_special_tokens=True):
        ids = list(ids)
        self.looked_at += len(ids)
        return self.tokenizer.pieces(ids, skip_special_tokens)

    def decode(self, ids, skip_special_tokens=True):
        ids = list(ids)
        self.looked_at += len(ids)
        return self.tokenizer.decode(ids, skip_special_tokens)


@pytest.mark.parametrize("name", ["byte-level", "llama", "metaspace", "words", "wordpiece"])
def test_every_token_is_looked_at_once(name):
    tokenizer = Counting(ALL[name])
    detokenizer = Detokenizer(tokenizer)
    # Bytes that never become a character are the case in which a window would not move on.
    bad = id_of(ALL[name], "<0xFF>") or id_of(ALL[name], BYTE[0xFF]) or 0
    for _ in range(500):
        detokenizer.add([bad])
    detokenizer.finish()
    assert tokenizer.looked_at == 500


def longest_beginning(text: str, stops: list[str]) -> int:
    return max(
        n for n in range(len(text) + 1) if any(stop.startswith(text[len(text) - n :]) for stop in stops) or n == 0
    )


def search(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Returns where the first stop string to be completed ends, and which it is."""
    for end in range(len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return end, stop
    return None


LETTERS = st.text("ab日", max_size=14)


@settings(deadline=None, max_examples=200)
@given(st.data(), LETTERS, st.lists(st.text("ab日", min_size=1, max_size=5), max_size=4), st.booleans())
def test_stop_strings_against_a_search_of_the_whole(data, text, stops, include):
    parts = data.draw(st.composite(chunks)(text))
    machine = StopStrings(stops, include)
    found = search(text, stops)
    out = seen = ""
    matched = None
    for part in parts:
        seen += part
        new, matched = machine.add(part)
        out += new
        now = search(seen, stops)
        assert matched == (now[1] if now else None)  # not a character too late
        if not now:
            assert out == seen[: len(seen) - longest_beginning(seen, stops)]  # and no more held than must be
    out += machine.finish()
    assert matched == machine.matched
    if found:
        end, stop = found
        assert (out, matched) == (text[:end] if include else text[: end - len(stop)], stop)
    else:
        assert (out, matched) == (text, None)


@pytest.mark.parametrize(
    ("stops", "text", "out", "matched"),
    [
        (["cd", "bcde"], "abcdef", "ab", "cd"),  # completed first, though begun second
        (["ab", "abc"], "abc", "", "ab"),
        (["bc", "abc"], "abc", "a", "bc"),  # completed at once: the order given
        (["abc", "bc"], "abc", "", "abc"),
        (["aab"], "aaab", "a", "aab"),  # begins again within its own beginning
        (["日本"], "a日日本b", "a日", "日本"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_which_stop_string_wins(stops, text, out, matched, size):
    machine = StopStrings(stops)
    results = [machine.add(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join(new for new, _ in results) == out
    assert results[-1][1] == matched
    assert machine.add("more") == ("", matched)
    assert machine.finish() == ""


def test_what_is_held_comes_out_at_the_end():
    machine = StopStrings(["stop"])
    assert machine.add("do not sto") == ("do not ", None)
    assert machine.finish() == "sto"
    assert machine.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], "stop", [1], [None]])
def test_bad_stop_strings(stops):
    with pytest.raises(ValueError, match=r"^stops: expected a sequence of non-empty strings, got .*$"):
        StopStrings(stops)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte-level", "llama", "metaspace", "words", "wordpiece"])
@pytest.mark.parametrize("include", [False, True])
def test_a_stream_is_the_whole_up_to_the_stop(name, include):
    tokenizer = ALL[name]

    @settings(deadline=None, max_examples=40)
    @given(
        streams(tokenizer), st.lists(st.sampled_from(["lo", "lo,", "本", "é", " H", "\ufffd\ufffd", "."]), max_size=3)
    )
    @example([[id_of(tokenizer, "lo")], [id_of(tokenizer, ",")]], ["lo,"])
    def check(parts, stops):
        ids = [id for part in parts for id in part]
        stream = TextStream(tokenizer, stops, include_in_output=include)
        deltas = [stream.add(part) for part in parts]
        used = sum(delta.tokens_used for delta in deltas)
        last = stream.finish()
        text = "".join(delta.text for delta in deltas) + last.text
        whole = tokenizer.decode(ids)
        found = search(whole, stops)
        if found is None:
            assert (text, last.stopped_by, used) == (whole, None, len(ids))
            return
        end, stop = found
        assert (text, last.stopped_by) == (whole[: end if include else end - len(stop)], stop)
        # The tokens used are enough for the stop string, and where it was certain before the end, no fewer are.
        assert search(tokenizer.decode(ids[:used]), stops) is not None
        if deltas[-1].stopped_by is not None:
            shorter = TextStream(tokenizer, stops)
            assert shorter.add(ids[: used - 1]).stopped_by is None

    check()


def test_the_token_of_the_stop_is_known():
    tokenizer = STREAMING["byte-level"]
    ids = tokenizer.encode("say <end> more", add_special_tokens=False)  # a token a character
    stream = TextStream(tokenizer, ["<end>"])
    first, second, third = stream.add(ids[:6]), stream.add(ids[6:12]), stream.add(ids[12:])
    assert (first.text, first.stopped_by, first.tokens_used) == ("say ", None, 6)
    assert (second.text, second.stopped_by, second.tokens_used) == ("", "<end>", 3)
    assert (third.text, third.stopped_by, third.tokens_used) == ("", "<end>", 0)
    assert stream.finish() == third


def test_a_stop_string_in_the_text_held_back():
    tokenizer = STREAMING["llama"]
    stream = TextStream(tokenizer, ["é"])
    assert stream.add(id_of(tokenizer, f"<0x{byte:02X}>") for byte in "aéa".encode()).stopped_by is None
    last = stream.finish()
    assert (last.text, last.stopped_by) == ("a", "é")


def test_a_stream_can_show_special_tokens():
    tokenizer = STREAMING["byte-level"]
    ids = [id_of(tokenizer, "lo"), id_of(tokenizer, "</s>"), id_of(tokenizer, "lo")]
    assert TextStream(tokenizer).add(ids).text == "lolo"
    assert TextStream(tokenizer, skip_special_tokens=False).add(ids).text == "lo</s>lo"
    stopped = TextStream(tokenizer, ["</s>"], skip_special_tokens=False).add(ids)
    assert (stopped.text, stopped.tokens_used) == ("lo", 2)


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"needs the checkpoint {STORIES.name}, which is not in the repository")
def test_a_real_checkpoint_streams():
    tokenizer = Tokenizer.from_folder(STORIES)
    ids = tokenizer.encode("Once upon a time, Lily saw 日本 and 👩‍👩‍👧.") + [2, *range(tokenizer.vocab_size)]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add([id]) for id in ids]
    assert pieces[:4] == ["", "Once", " upon", " a"]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)
