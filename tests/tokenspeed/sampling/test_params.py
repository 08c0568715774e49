"""SamplingParams: defaults, what is stored, and one line for every bad value."""

import copy
import dataclasses
import math
import pickle
import re

import numpy as np
import pytest

from tokenspeed.sampling.params import SamplingParams


def test_defaults_are_those_of_vllm():
    assert dataclasses.asdict(SamplingParams()) == dict(
        n=1,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=16,
        min_tokens=0,
        stop=(),
        stop_token_ids=(),
        ignore_eos=False,
        seed=None,
        logprobs=None,
        prompt_logprobs=None,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias=None,
        allowed_token_ids=None,
        skip_special_tokens=True,
        include_stop_str_in_output=False,
    )


def test_values_are_stored_in_one_form():
    bias = {3: 1}
    params = SamplingParams(
        temperature=1,
        top_k=-1,
        stop="end",
        stop_token_ids=[np.int32(2), 5],
        logit_bias=bias,
        allowed_token_ids=np.array([3, 4]),
        top_p=np.float32(0.5),
    )
    bias[3] = 2
    assert params.temperature == 1.0 and isinstance(params.temperature, float)
    assert params.top_k == 0
    assert params.stop == ("end",)
    assert params.stop_token_ids == (2, 5) and all(type(token) is int for token in params.stop_token_ids)
    assert params.logit_bias == {3: 1.0}
    assert params.allowed_token_ids == (3, 4)
    assert params.top_p == 0.5
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=None).stop_token_ids == ()
    assert SamplingParams(logit_bias={}).logit_bias is None


def test_equality_hash_and_copies():
    params = SamplingParams(seed=2**64 - 1, logit_bias={1: -100}, max_tokens=None, stop=("a",))
    for other in (copy.deepcopy(params), pickle.loads(pickle.dumps(params)), dataclasses.replace(params)):
        assert other == params and hash(other) == hash(params)
    assert dataclasses.replace(params, logit_bias={1: 5}) != params
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2


def test_what_a_request_needs():
    plain = SamplingParams()
    assert not (plain.greedy or plain.needs_penalties or plain.needs_bias)
    assert SamplingParams(temperature=0).greedy
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert SamplingParams(**{name: 0.5}).needs_penalties
    assert SamplingParams(logit_bias={0: 1}).needs_bias
    assert SamplingParams(allowed_token_ids=[0]).needs_bias


INTEGERS = {
    "n": "an integer from 1 to 128",
    "top_k": "an integer from -1 to 2147483647",
    "max_tokens": "an integer from 1 to 2147483647 or None",
    "min_tokens": "an integer from 0 to 2147483647",
    "seed": "an integer from 0 to 18446744073709551615 or None",
    "logprobs": "an integer from 0 to 20 or None",
}
NUMBERS = {
    "temperature": "a number 0 or more",
    "top_p": "a number above 0 and at most 1",
    "min_p": "a number from 0 to 1",
    "presence_penalty": "a number from -2 to 2",
    "frequency_penalty": "a number from -2 to 2",
    "repetition_penalty": "a number from 0.01 to 100",
}
TOKEN = "an integer from 0 to 2147483647"
BIAS = "a number from -100.0 to 100.0"
BAD = [
    *((name, value, TypeError, wanted) for name, wanted in INTEGERS.items() for value in (True, 1.5, "1", [1])),
    *((name, -2, ValueError, wanted) for name, wanted in INTEGERS.items()),
    *((name, 2**64, ValueError, wanted) for name, wanted in INTEGERS.items()),
    *((name, None, TypeError, INTEGERS[name]) for name in ("n", "top_k", "min_tokens")),
    ("n", 0, ValueError, INTEGERS["n"]),
    ("max_tokens", 0, ValueError, INTEGERS["max_tokens"]),
    ("seed", -1, ValueError, INTEGERS["seed"]),
    ("logprobs", -1, ValueError, INTEGERS["logprobs"]),
    ("logprobs", 21, ValueError, INTEGERS["logprobs"]),
    *(
        (name, value, TypeError, wanted)
        for name, wanted in NUMBERS.items()
        for value in (True, np.True_, None, "1", [1.0], np.ones(1))
    ),
    *(
        (name, value, ValueError, wanted)
        for name, wanted in NUMBERS.items()
        for value in (math.nan, math.inf, -math.inf, -2.5)
    ),
    ("temperature", 10**400, ValueError, NUMBERS["temperature"]),
    ("top_p", 0, ValueError, NUMBERS["top_p"]),
    ("top_p", 1.01, ValueError, NUMBERS["top_p"]),
    ("min_p", 1.01, ValueError, NUMBERS["min_p"]),
    ("presence_penalty", 2.01, ValueError, NUMBERS["presence_penalty"]),
    ("frequency_penalty", 2.01, ValueError, NUMBERS["frequency_penalty"]),
    ("repetition_penalty", 0, ValueError, NUMBERS["repetition_penalty"]),
    *(
        (name, value, TypeError, "True or False")
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")
        for value in (1, None, "yes")
    ),
    ("stop", "", ValueError, "strings that are not empty"),
    ("stop", ["a", ""], ValueError, "strings that are not empty"),
    ("stop", ["a"] * 17, ValueError, "at most 16 strings"),
    ("stop", 3, TypeError, "a string, a sequence of strings or None"),
    ("stop", ["a", 3], TypeError, "a string, a sequence of strings or None"),
    ("stop", b"a", TypeError, "a string, a sequence of strings or None"),
    *(
        case
        for name in ("stop_token_ids", "allowed_token_ids")
        for case in (
            (name, [3, -1], ValueError, TOKEN),
            (name, [2**31], ValueError, TOKEN),
            (name, [True], TypeError, TOKEN),
            (name, [1.0], TypeError, TOKEN),
            (name, "12", TypeError, "a sequence of token ids or None"),
            (name, 3, TypeError, "a sequence of token ids or None"),
            (name, {3: 1}, TypeError, "a sequence of token ids or None"),
            (name, bytearray(b"ab"), TypeError, "a sequence of token ids or None"),
            (name, np.int32(3), TypeError, "a sequence of token ids or None"),
        )
    ),
    ("allowed_token_ids", [], ValueError, "at least one token id"),
    ("logit_bias", [3], TypeError, "a mapping from token id to a number or None"),
    ("logit_bias", {"3": 1.0}, TypeError, TOKEN),
    ("logit_bias", {-1: 1.0}, ValueError, TOKEN),
    ("logit_bias", {3: 100.5}, ValueError, BIAS),
    ("logit_bias", {3: -100.5}, ValueError, BIAS),
    ("logit_bias", {3: math.nan}, ValueError, BIAS),
    ("logit_bias", {3: True}, TypeError, BIAS),
]


@pytest.mark.parametrize("name, value, error, wanted", BAD, ids=[f"{b[0]}-{b[1]!r:.20}" for b in BAD])
def test_bad_values(name, value, error, wanted):
    with pytest.raises(error, match=f"^{name}: expected {re.escape(wanted)}.*, got ") as raised:
        SamplingParams(**{name: value})
    assert "\n" not in str(raised.value)


def test_the_message_shows_what_was_given():
    with pytest.raises(ValueError, match=r"^top_p: expected a number above 0 and at most 1, got 1\.5$"):
        SamplingParams(top_p=1.5)
    with pytest.raises(TypeError, match=r"^seed: expected an integer .* or None, got 'x'$"):
        SamplingParams(seed="x")


def test_fields_that_disagree():
    with pytest.raises(ValueError, match=r"^min_tokens: expected at most max_tokens, 4, got 5$"):
        SamplingParams(max_tokens=4, min_tokens=5)
    SamplingParams(max_tokens=None, min_tokens=5)
    with pytest.raises(ValueError, match=r"^n: expected 1 where temperature is 0.*, got 2$"):
        SamplingParams(n=2, temperature=0)


def test_what_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=1)


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_ids_are_checked_against_a_vocabulary(name):
    params = SamplingParams(**{name: {3: 1.0, 9: 2.0} if name == "logit_bias" else [3, 9]})
    params.validate_for(10)
    with pytest.raises(ValueError, match=f"^{name}: expected token ids below 9, the vocabulary's size, got 9$"):
        params.validate_for(9)
    SamplingParams().validate_for(1)
