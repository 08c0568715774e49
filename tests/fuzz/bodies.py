"""Bodies near to valid ones: some fields changed, added, dropped, or the bytes themselves."""

import json
from typing import Any

from hypothesis import strategies as st

VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        dict(prompt="Once upon a time", max_tokens=2),
        dict(prompt=["The", "A dog"], max_tokens=1, n=2, stream=True, stream_options=dict(include_usage=True)),
        dict(prompt=[5, 6, 7], max_tokens=2, logprobs=3, echo=True, temperature=0, stop=["\n", "dog"]),
        dict(prompt="", max_tokens=1, logit_bias={"5": -100}, top_p=0.5, seed=3, presence_penalty=1.5),
    ],
    "/v1/chat/completions": [
        dict(messages=[dict(role="user", content="Hello")], max_tokens=2),
        dict(
            messages=[dict(role="system", content="Hm"), dict(role="user", content=[dict(type="text", text="Hi")])],
            max_completion_tokens=1, stream=True, logprobs=True, top_logprobs=2,
        ),
        dict(
            messages=[dict(role="user", content="Hi"), dict(role="assistant", content="")],
            max_tokens=2, n=2, stop="a", top_k=5, min_p=0.1, stop_token_ids=[3], allowed_token_ids=[4, 5],
        ),
    ],
}  # fmt: skip

# Also halves of characters, which JSON can say and UTF-8 cannot.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=40)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40)
NUMBERS = st.one_of(
    st.integers(-3, 300), st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400])
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
STOPS = st.one_of(
    TEXTS, st.lists(TEXTS, max_size=20), st.lists(st.sampled_from(["", " ", "a", "\n", "\x00", "the", "a" * 3000]))
)
IDS = st.integers(0, 300)
FLAGS = st.booleans()
LIKELY: dict[str, st.SearchStrategy] = dict(
    temperature=st.floats(0, 2), top_p=st.floats(0, 1), top_k=st.integers(-1, 50), min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1), n=st.integers(0, 4), logprobs=st.integers(0, 20) | FLAGS,
    top_logprobs=st.integers(0, 20), max_tokens=st.integers(0, 5), min_tokens=st.integers(0, 3),
    priority=st.integers(-9, 9), repetition_penalty=st.floats(0.01, 100), frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(IDS.map(str), st.floats(-100, 100), max_size=4),
    stop_token_ids=st.lists(IDS, max_size=4),
    allowed_token_ids=st.lists(IDS, max_size=4), echo=FLAGS, stream=FLAGS, ignore_eos=FLAGS, skip_special_tokens=FLAGS,
    include_stop_str_in_output=FLAGS, add_special_tokens=FLAGS, add_generation_prompt=FLAGS, model=TEXTS, user=TEXTS,
    best_of=st.just(1), tools=st.just([]), response_format=st.just(dict(type="text")), prompt=TEXTS, stop=STOPS,
    stream_options=st.fixed_dictionaries(dict(include_usage=FLAGS, continuous_usage_stats=FLAGS)),
)  # fmt: skip
# Names of a chat template's own variables and functions are among what it is given.
KWARGS = st.dictionaries(st.sampled_from(["messages", "tools", "eos_token", "self", "x", "loop"]), ANYTHING, max_size=2)


@st.composite
def changed(draw, path: str) -> bytes:
    """A valid body with one to three changes, as JSON."""
    body = json.loads(json.dumps(draw(st.sampled_from(VALID[path]))))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*body, *LIKELY]))
        match draw(st.sampled_from(["likely"] * 6 + ["value", "unknown", "drop", "stop", "inside", "variables"])):
            case "likely":
                body[name] = draw(LIKELY.get(name, ANYTHING))
            case "value":
                body[name] = draw(ANYTHING)
            case "unknown":
                body[draw(NAMES)] = draw(ANYTHING)
            case "drop":
                body.pop(name, None)
            case "stop":
                body["stop"] = draw(STOPS)
            case "inside" if isinstance(body.get("messages"), list) and body["messages"]:
                body["messages"][0] = draw(ANYTHING | st.fixed_dictionaries(dict(role=TEXTS, content=TEXTS | ANYTHING)))
            case "inside":
                body["prompt"] = draw(st.lists(NUMBERS | TEXTS | st.lists(NUMBERS, max_size=3), max_size=5) | TEXTS)
            case "variables":
                body["chat_template_kwargs"] = draw(KWARGS)
    return json.dumps(body).encode()


@st.composite
def broken(draw, path: str) -> bytes:
    """A valid body some of whose bytes are others, are missing, or come twice."""
    whole = bytearray(json.dumps(draw(st.sampled_from(VALID[path]))), "utf-8")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(whole)))
        until = min(len(whole), at + draw(st.integers(0, 6)))
        some = draw(
            st.sampled_from([whole[at:until] * 2, b"", b"\xff", b"\xc3", b"\xed\xa0\x80", b"NaN"])
            | st.binary(max_size=4)
        )
        whole[at:until] = some
    return bytes(whole)
