from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError
from sqlalchemy.exc import OperationalError

from engine.errors import (
    EngineError,
    ForbiddenError,
    ReleaseNotFoundError,
    RequestError,
    UnknownItemError,
    UnknownKeyError,
    UnknownUserError,
)
from engine.serving import faults


def through_ray(error: Exception) -> Exception:
    """Return the error as a caller of a replica gets it."""
    wrapped: Exception = RayTaskError("find", "the trace", error).as_instanceof_cause()
    return wrapped


@pytest.fixture
def answer() -> Iterator[Callable[[Exception], tuple[int, dict[str, object], dict[str, str]]]]:
    api = FastAPI()
    faults.install(api)
    client = TestClient(api, raise_server_exceptions=False)

    def ask(error: Exception) -> tuple[int, dict[str, object], dict[str, str]]:
        @api.get("/")
        async def fail() -> None:
            raise error

        response = client.get("/")
        return response.status_code, response.json(), dict(response.headers)

    yield ask
    client.close()


@pytest.mark.parametrize("wrap", [lambda error: error, through_ray], ids=["here", "through ray"])
@pytest.mark.parametrize(("error", "status"), [
    (UnknownItemError("item 'x' is not there"), 404), (UnknownUserError("user 'u'"), 404),
    (RequestError("k: 5 is more than 3"), 422), (ReleaseNotFoundError("none is live"), 503),
    (OperationalError("SELECT 1", {}, Exception("database is away")), 503),
    (UnknownKeyError("a key is needed"), 401), (ForbiddenError("another key is needed"), 403),
    (EngineError("ours"), 500), (KeyError("a bug"), 500),
])
def test_errors_have_their_status(
    answer: Callable[..., tuple[int, dict[str, object], dict[str, str]]], error: Exception,
    status: int, wrap: Callable[[Exception], Exception],
) -> None:
    code, body, headers = answer(wrap(error))
    assert code == status
    assert body["error"] == type(error).__name__
    assert "the trace" not in str(body["message"])
    assert ("retry-after" in headers) == (status == 503)
    assert ("www-authenticate" in headers) == (status == 401)


def test_an_error_of_the_database_tells_nobody_what_was_stored(
    answer: Callable[..., tuple[int, dict[str, object], dict[str, str]]],
) -> None:
    error = OperationalError("INSERT INTO events", {"user_id": "ann"}, Exception("disk full"))
    _, body, _ = answer(error)
    assert body["message"] == "the database does not answer"


def test_a_request_error_names_its_fields(
    answer: Callable[..., tuple[int, dict[str, object], dict[str, str]]],
) -> None:
    _, body, _ = answer(RequestError("user_id, history: give exactly one"))
    assert body["fields"] == ["user_id", "history"]


@pytest.mark.parametrize(("error", "status"), [
    (BackPressureError(5, 4), 429), (through_ray(BackPressureError(5, 4)), 429),
    (ActorDiedError(), 503), (TimeoutError("no replica answered"), 503),
])
def test_a_full_queue_is_a_429_and_a_dead_replica_a_503(
    answer: Callable[..., tuple[int, dict[str, object], dict[str, str]]], error: Exception,
    status: int,
) -> None:
    code, _, headers = answer(error)
    assert (code, headers["retry-after"]) == (status, "1")
