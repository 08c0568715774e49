"""Bodies drawn from the schema that the server publishes, as it wants them and as it does not."""

import functools

import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.conftest import LIMIT_S

POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
GETS = ("/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/{name}")

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def operation(fuzzed):
    schema = schemathesis.openapi.from_url(f"{fuzzed.server.url}/openapi.json")
    return lambda path, method: schema[path][method]


def answered(fuzzed, case):
    response = case.call(base_url=fuzzed.server.url, timeout=2 * LIMIT_S)
    fuzzed.check(case.path, response.status_code, response.content, response.elapsed)
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_bodies(fuzzed, operation, each, path, mode):
    each(operation(path, "POST").as_strategy(generation_mode=mode), 0.07, functools.partial(answered, fuzzed))


@pytest.mark.parametrize("path", GETS)
def test_what_takes_no_body(fuzzed, operation, each, path):
    share = 0.02 if "{" in path else 0.0002
    each(operation(path, "GET").as_strategy(), share, functools.partial(answered, fuzzed))


def test_every_path_is_fuzzed(fuzzed):
    paths = fuzzed.client.get("/openapi.json").json()["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == {
        *((path, "post") for path in POSTS),
        *((path, "get") for path in GETS),
    }
