"""The whole OpenAPI document by schemathesis: what it says of statuses, headers and fields is so, for good requests and bad."""

from typing import Any

import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, settings

from attacks import PATIENCE, watched

# Bounds of the model's work; what is out of range stays so.
MOST = {"max_tokens": 4, "max_completion_tokens": 4, "min_tokens": 2, "samples": 4, "n": 2, "length": 4, "most": 4}
CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", autouse=True)
def calm(server):
    with watched(server, growth=512 * 2**20):
        yield


def api(url: str, *, coverage: bool) -> Any:
    """The schema of the server, and requests for its model that need little work."""
    # A body may fit the schema and still not fit itself (stream_options without stream) or the model's context: that is a 400.
    taken = {"positive_data_acceptance": {"expected-statuses": ["2xx", "400"]}}
    phases = {"coverage": {"enabled": coverage}}
    config = schemathesis.Config.from_dict({"seed": 1, "checks": taken, "phases": phases})
    found = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)

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
        if type(found.get(name)) is int and most < found[name] < 2**31 and name != "n":
            found[name] = most
    return found


@pytest.fixture(scope="module")
def few(server):
    return api(server, coverage=False)


@pytest.fixture(scope="module")
def all_(server):
    return api(server, coverage=True)


@schemathesis.pytest.from_fixture("few").parametrize()
@settings(max_examples=4, derandomize=True, **CALM)
def test_requests_by_the_schema(case):
    case.call_and_validate(timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@schemathesis.pytest.from_fixture("all_").parametrize()
@settings(max_examples=150, derandomize=True, **CALM)
def test_many_requests_by_the_schema(case):
    case.call_and_validate(timeout=PATIENCE)
