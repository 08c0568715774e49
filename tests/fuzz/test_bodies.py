"""Bodies near to valid ones, and large ones of every kind."""

import json

import pytest

from tests.fuzz.bodies import VALID, broken, changed

MEGABYTE = 1 << 20


@pytest.mark.parametrize("path", VALID)
def test_changed_fields(fuzzed, each, path):
    each(changed(path), 0.16, lambda body: fuzzed.post(path, body))


@pytest.mark.parametrize("path", VALID)
def test_broken_bytes(fuzzed, each, path):
    each(broken(path), 0.05, lambda body: fuzzed.post(path, body))


@pytest.mark.parametrize("path", VALID)
def test_valid_ones_are_answered(fuzzed, path):
    for body in VALID[path]:
        if body.get("prompt") != "":  # no token, without one that begins every text
            assert fuzzed.post(path, json.dumps(body).encode()).status_code == 200, body


LARGE = dict(
    prompt=json.dumps(dict(prompt="word " * (MEGABYTE // 5))).encode(),
    one_word=json.dumps(dict(prompt="a" * MEGABYTE)).encode(),
    no_words=json.dumps(dict(prompt="\u2603\x00" * (MEGABYTE // 12))).encode(),
    ids=json.dumps(dict(prompt=[5] * (MEGABYTE // 3))).encode(),
    prompts=json.dumps(dict(prompt=["a"] * (MEGABYTE // 5))).encode(),
    stops=json.dumps(dict(prompt="a", stop=["b"] * (MEGABYTE // 5))).encode(),
    long_stop=json.dumps(dict(prompt="a", stop="b" * MEGABYTE)).encode(),
    bias=json.dumps(dict(prompt="a", logit_bias={str(i): 1 for i in range(MEGABYTE // 12)})).encode(),
    field=json.dumps(dict(prompt="a", **{"x" * MEGABYTE: 1})).encode(),
    lines=b'{"prompt": "a", "x\\ny": 1}',
    fields=json.dumps(dict(prompt="a", **{f"x{i}": 1 for i in range(MEGABYTE // 12)})).encode(),
    deep_lists=b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    deep_tables=b'{"prompt": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    deep_kwargs=b'{"chat_template_kwargs": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}",
    digits=b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}",
    exponent=b'{"prompt": "a", "temperature": 1e999999}',
    not_a_number=b'{"prompt": "a", "temperature": NaN}',
    half_a_character=b'{"prompt": "\\ud800"}',
    no_utf8=b'{"prompt": "\xff\xfe"}',
    utf16=json.dumps(dict(prompt="a")).encode("utf-16"),
    byte_order=b"\xef\xbb\xbf" + b'{"prompt": "a"}',
    nothing=b"",
    zeros=bytes(MEGABYTE),
    twice=b'{"prompt": "a", "prompt": "b", "max_tokens": 1}',
    too_long=b'{"prompt": "' + b"a" * (5 * MEGABYTE) + b'"}',
)


@pytest.mark.parametrize("path", [*VALID, "/tokenize", "/detokenize"])
@pytest.mark.parametrize("what", LARGE)
def test_large_and_odd_ones(fuzzed, what, path):
    body = LARGE[what]
    if "chat" in path:
        body = body.replace(b'"prompt": "', b'"messages": [{"role": "user", "content": "', 1)
        body = body[:-1] + b"}]}" if body.count(b'"messages"') and body.endswith(b'"}') else body
    fuzzed.post(path, body)
