"""Exceptions -> status codes and error bodies; bad input is never a 500."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from engine.errors import (
    EngineError,
    ForbiddenError,
    ReleaseError,
    RequestError,
    UnknownItemError,
    UnknownKeyError,
    UnknownUserError,
)
from engine.serving.schemas import ErrorAnswer

log = logging.getLogger(__name__)

STATUS: dict[type[EngineError], int] = {
    UnknownKeyError: 401, ForbiddenError: 403, UnknownItemError: 404, UnknownUserError: 404,
    RequestError: 422, ReleaseError: 503,
}
_LATER = {"Retry-After": "1"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: _LATER, 503: _LATER}


def answer_error(
    status: int, error: str, message: str, fields: list[str] | None = None
) -> JSONResponse:
    """Return an error body; headers say when to try again, or that a key is missing."""
    body = ErrorAnswer(error=error, message=message, fields=fields or [])
    return JSONResponse(body.model_dump(), status, HEADERS.get(status))


def install(api: FastAPI) -> None:
    """Handle every error of an application."""
    api.add_exception_handler(EngineError, _on_engine_error)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(HTTPException, _on_http)
    api.add_exception_handler(RayServeException, _on_unavailable)
    api.add_exception_handler(RayActorError, _on_unavailable)
    api.add_exception_handler(OperationalError, _on_unavailable)
    api.add_exception_handler(TimeoutError, _on_unavailable)
    api.add_exception_handler(Exception, _on_unexpected)


async def _on_engine_error(_request: Request, error: Exception) -> JSONResponse:
    """A RequestError's message begins with the fields: `k: 500 is more than 100`."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    status = next((code for kind, code in STATUS.items() if isinstance(cause, kind)), 500)
    message = str(cause)
    fields = message.partition(": ")[0].split(", ") if isinstance(cause, RequestError) else []
    if status == 500:
        log.error("unexpected %s: %s", type(cause).__name__, message)
    return answer_error(status, type(cause).__name__, message, fields)


async def _on_invalid(_request: Request, error: Exception) -> JSONResponse:
    """Name the fields; never repeat their content, which need not be JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    faults = {_field(fault["loc"]): str(fault["msg"]) for fault in error.errors()}
    message = "; ".join(f"{name}: {text}" for name, text in faults.items())
    return answer_error(422, RequestError.__name__, message, list(faults))


def _field(location: tuple[str | int, ...]) -> str:
    """Return `candidates.3` of ("body", "candidates", 3); a fault of the whole is `body`."""
    parts = [str(part) for part in location[1:]]
    return ".".join(parts) if parts and not parts[0].isdigit() else str(location[0])


async def _on_http(_request: Request, error: Exception) -> JSONResponse:
    """A body that cannot be parsed at all (text that is no UTF-8, endless digits) is a 422."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return answer_error(422, RequestError.__name__, f"body: {error.detail}", ["body"])
    return answer_error(error.status_code, "HTTPException", str(error.detail))


async def _on_unavailable(_request: Request, error: Exception) -> JSONResponse:
    """A full queue is a 429; a replica that died or a database that is away a 503."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    status = 429 if isinstance(cause, BackPressureError) else 503
    log.warning("answering %d: %s", status, cause)
    is_of_database = isinstance(cause, OperationalError)    # it tells of tables and hosts
    message = "the database does not answer" if is_of_database else str(cause)
    return answer_error(status, type(cause).__name__, message)


async def _on_unexpected(_request: Request, error: Exception) -> JSONResponse:
    """A bug of ours; the server logs it with its trace."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return answer_error(500, type(cause).__name__, "the server failed; its log says why")
