"""Answers to invalid requests: a 4xx status and a sentence, where the stock server returns a bare 500."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pydantic
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelException

from ...runs.plain_errors import plain_cause

ASKED_WRONGLY = ("Neither Image nor File", "Model File Name NOT configured")  # stock endpoints answer these with a 500


@contextmanager
def answered(status: int = 400) -> Iterator[None]:
    """Turn this package's errors and errors about files into an HTTP answer; others propagate unchanged.

    Raises:
        HTTPException: with ``status`` and the error's message.
    """
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:  # MONAI wraps ours in its own
        plain = plain_cause(error)
        if plain is None:
            raise
        raise HTTPException(status, str(plain)) from error


def answer_in_words(api: FastAPI, check: Callable[[str, str], None]) -> None:
    """Make a server answer 4xx if an endpoint cannot read a request or the app cannot serve it.

    When the app is notified, the server is already running and its middleware stack already built. Discarding the stack
    makes the server rebuild it at the next request, with the handlers added here.

    Args:
        api: the server.
        check: called with each request's method and path; raises an HTTPException to reject it.
    """
    api.middleware_stack = None
    for kind in (json.JSONDecodeError, pydantic.ValidationError, MONAILabelException):
        api.add_exception_handler(kind, _answer)
    for kind in (ValueError, TypeError, AttributeError):
        api.add_exception_handler(kind, _answer_if_unreadable)
    api.add_exception_handler(HTTPException, _answer_with_right_status)

    @api.middleware("http")
    async def refuse(request: Request, serve: Callable) -> Response:
        try:
            check(request.method, request.url.path)
        except HTTPException as error:
            return JSONResponse({"detail": error.detail}, status_code=error.status_code)
        return await serve(request)


def _sentence(error: Exception) -> str:
    """The error as a sentence."""
    if isinstance(error, MONAILabelException):
        return str(error.msg)
    if isinstance(error, json.JSONDecodeError):
        return f"the request's `params` or `wsi` must be a JSON object; {error}."
    return f"the request must be in the form that the endpoint reads (see /docs); {error}."


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": _sentence(error)}, status_code=400)


async def _answer_if_unreadable(request: Request, error: Exception) -> JSONResponse:
    """Answer errors raised in an endpoint's own code, which parses the request; deeper ones are server errors."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_globals.get("__name__", "").startswith("monailabel.endpoints."):
        raise error
    return await _answer(request, error)


async def _answer_with_right_status(request: Request, error: HTTPException) -> JSONResponse:
    """Turn a 500 that is about the request into a 400."""
    if error.status_code == 500 and str(error.detail).startswith(ASKED_WRONGLY):
        error = HTTPException(400, f"{error.detail}.")
    return await http_exception_handler(request, error)
