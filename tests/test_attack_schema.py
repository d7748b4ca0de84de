"""The whole OpenAPI document by schemathesis: what it says of statuses, headers and fields is so, for good requests and bad."""

from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import hypothesis
import schemathesis

from attacks import BASES, PATIENCE, watched

# Bounds of the model's work; what is out of range stays so.
MOST = {"max_tokens": 4, "max_completion_tokens": 4, "min_tokens": 2, "samples": 4, "length": 4, "most": 4}
GETS = ("/v1/models", "/v1/models/{name}", "/health", "/ready")
OPERATIONS = [*(("post", path) for path in BASES), *(("get", path) for path in GETS)]


@pytest.fixture(scope="module", autouse=True)
def calm(server):
    with watched(server, growth=512 * 2**20):
        yield


@pytest.fixture(scope="module")
def api(server):
    """The schema of the server, and requests for its model that need little work."""
    # A body may fit the schema and still not fit itself (stream_options without stream) or the model's context: that is a 400.
    # And a model has a name, which schemathesis cannot know.
    taken = {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404"]}}
    config = schemathesis.Config.from_dict({"seed": 1, "checks": taken})
    found = schemathesis.openapi.from_url(f"{server}/openapi.json", config=config)

    @found.hook
    def map_body(context: Any, body: Any) -> Any:
        return bounded(body)

    return found


def bounded(body: Any) -> Any:
    if isinstance(body, list):
        return [bounded(one) for one in body]
    if not isinstance(body, dict):
        return body
    found = {name: bounded(value) for name, value in body.items()}
    if isinstance(found.get("model"), str):
        found["model"] = "pocket"
    for name, most in MOST.items():
        if type(found.get(name)) is int and most < found[name] <= 4096:
            found[name] = most
    return found


def by_the_schema(operation: Any, mode: Any, examples: int) -> set[int]:
    """Ask what schemathesis thinks of, and have it check the answers; the statuses that there were."""
    seen = set()

    @hypothesis.settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        database=None, phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def asks(case: Any) -> None:
        seen.add(case.call_and_validate(timeout=PATIENCE).status_code)

    asks()
    return seen


def test_the_schema_has_no_other_operations(api):
    assert {(one.ok().method, one.ok().path) for one in api.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize("examples", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda word: word)
def test_good_requests_by_the_schema(api, method, path, examples):
    seen = by_the_schema(api[path][method.upper()], schemathesis.GenerationMode.POSITIVE, examples)
    if path == "/v1/models/{name}":
        assert seen <= {200, 404}
    else:
        assert seen <= {200, 400} and (200 in seen or examples < 10)


@pytest.mark.parametrize("examples", [5, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("path", BASES)
def test_bad_requests_by_the_schema(api, path, examples):
    seen = by_the_schema(api[path]["POST"], schemathesis.GenerationMode.NEGATIVE, examples)
    assert seen <= {400, 415}
