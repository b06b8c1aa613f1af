"""Answers to requests that cannot be served: a 4xx status and a sentence, where the stock server says 500 alone."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pydantic
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelException

from ...runs.plain_errors import plain_cause

ASKED_WRONGLY = ("Neither Image nor File", "Model File Name NOT configured")  # what stock endpoints answer with a 500


@contextmanager
def answered(status: int = 400) -> Iterator[None]:
    """Turn errors that this package raises in words, or that are about a file, into an answer; others stay as they are.

    Raises:
        HTTPException: with ``status`` and the error's sentence.
    """
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:  # MONAI wraps ours in those of its own
        plain = plain_cause(error)
        if plain is None:
            raise
        raise HTTPException(status, str(plain)) from error


def answer_in_words(api: FastAPI, check: Callable[[str, str], None]) -> None:
    """Let a server answer 4xx where a request is not what an endpoint reads, or what the app can do.

    The server is running when the app hears of it, and its handlers are fixed by then; without the stack of
    middleware, which is made anew from them at the next request, they would not be heard.

    Args:
        api: the server.
        check: is given each request's method and path, and raises an HTTPException to refuse it.
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
    """What went wrong, in words."""
    if isinstance(error, MONAILabelException):
        return str(error.msg)
    if isinstance(error, json.JSONDecodeError):
        return f"the request's `params` or `wsi` must be JSON, an object in braces; {error}."
    return f"the request must be of the form that the endpoint reads (see /docs); {error}."


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": _sentence(error)}, status_code=400)


async def _answer_if_unreadable(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of an endpoint's own code, which reads the request; one from deeper down is the server's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_globals.get("__name__", "").startswith("monailabel.endpoints."):
        raise error
    return await _answer(request, error)


async def _answer_with_right_status(request: Request, error: HTTPException) -> JSONResponse:
    """A 500 that speaks of the request is a 400."""
    if error.status_code == 500 and str(error.detail).startswith(ASKED_WRONGLY):
        error = HTTPException(400, f"{error.detail}.")
    return await http_exception_handler(request, error)
