"""The HTTP face: routes, who may ask, how much, and errors in OpenAI's form. No torch in here.

    uvicorn.Server(uvicorn.Config(application(settings, Backend(settings))))

An endpoint makes jobs of a checked body, hands them to the backend, and answers with what `replies` makes of the events. Who
asked and has gone has its jobs cancelled at once: the generator of `Backend.run` is closed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException

from diffulm.errors import shown
from diffulm.serving import guard, reference, replies
from diffulm.serving.bodies import Asked, Body, ChatBody, CompletionBody, InfillBody, ScoreBody
from diffulm.serving.job import Job, Refused
from diffulm.serving.metrics import Metrics
from diffulm.serving.objection import objection
from diffulm.serving.settings import Settings

PAGE = Path(__file__).parents[1] / "assets" / "playground"
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
ONCE = {"x-should-retry": "false"}
"""OpenAI's client would have it computed twice more."""
CODES = {
    400: "invalid",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "body_too_large",
    415: "not_json",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field, or the body, cannot be used; `param` names the field"},
    401: {"description": "No key, or an unknown one"},
    404: {"description": "No such model"},
    408: {"description": "The body did not come in time"},
    413: {"description": "The body is too large"},
    415: {"description": "The body is not sent as application/json"},
    429: {"description": "The queue is full: try again after `Retry-After` seconds"},
    503: {"description": "The model is not ready, ran out of memory, was lost on the way, or the server is going down"},
    504: {"description": "It took too long"},
}
EVENTS = {
    "description": "The reply, or with stream=true its chunks as server-sent events",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
Done = TypeVar("Done")


class Gone(Refused):
    def __init__(self) -> None:
        super().__init__(499, "whoever asked has gone")


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, and also where it never begins, the generator `source` behind it is closed."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[str], source: AsyncGenerator[Any], **options: Any) -> None:
        super().__init__(lines, **options)
        self.source = source

    async def __call__(self, *ends: Any) -> None:
        try:
            await super().__call__(*ends)
        finally:
            await self.body_iterator.aclose()  # pyright: ignore[reportAttributeAccessIssue]
            await self.source.aclose()


def application(settings: Settings, backend: Any) -> FastAPI:
    """The app over a `Backend` (or what has its face)."""
    app = FastAPI(title="DiffuLM", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.stopping = False
    metrics = Metrics(backend)
    api = _api(settings, backend, metrics)
    app.include_router(api)
    _service(app, backend)
    _errors(app)
    app.openapi = lambda: reference.schema(app, settings)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    routes = {route.path for route in [*api.routes, *app.routes] if hasattr(route, "path")}  # pyright: ignore[reportAttributeAccessIssue]
    app.add_middleware(_Watched, metrics=metrics, routes=routes)
    return app


def _api(settings: Settings, backend: Any, metrics: Metrics) -> APIRouter:
    """What needs a key, where there are keys."""
    errors = {status: {"model": replies.ErrorReply, **said} for status, said in ERRORS.items()}
    keyed = [Security(HTTPBearer(auto_error=False, description="One of the server's keys."))] if settings.keys else []
    if not settings.keys:
        del errors[401]
    general = {status: said for status, said in errors.items() if status == 401}
    api = APIRouter(route_class=guard.route(settings), dependencies=keyed)

    def known() -> list[dict[str, Any]]:
        return [{"object": "model", "created": 0, "owned_by": "diffulm"} | one for one in backend.models]

    @api.get("/v1/models", response_model=replies.Models, response_model_exclude_unset=True, responses=general)
    async def models() -> Any:
        """The models that are served; none while they are being opened."""
        return {"object": "list", "data": known()}

    missing = general | {404: errors[404], 503: errors[503]}

    @api.get(
        "/v1/models/{name:path}", response_model=replies.Served, response_model_exclude_unset=True, responses=missing
    )
    async def model(name: str) -> Any:
        """One of them."""
        _ready(backend)
        found = [one for one in known() if one["id"] == name]
        return found[0] if found else _no_model(name, backend)

    kinds = {200: EVENTS, **errors}

    @api.post("/v1/completions", response_model=replies.Completion, responses=kinds)
    async def completions(body: CompletionBody, request: Request) -> Any:
        """Go on from a prompt, or fill what is between it and a suffix."""
        return await _answered(request, body, settings, backend)

    @api.post("/v1/chat/completions", response_model=replies.ChatCompletion, responses=kinds)
    async def chat(body: ChatBody, request: Request) -> Any:
        """The next reply in a conversation."""
        return await _answered(request, body, settings, backend)

    @api.post("/v1/infill", response_model=replies.Infilled, responses=kinds)
    async def infill(body: InfillBody, request: Request) -> Any:
        """Fill the holes of a text; what stands around them comes back as it is."""
        return await _answered(request, body, settings, backend)

    @api.post("/v1/score", response_model=replies.ScoreList, responses=errors)
    async def score(body: ScoreBody, request: Request) -> Any:
        """How many nats texts cost."""
        _check(body, settings, backend)
        jobs = body.jobs()
        _take(request, jobs, settings)
        reply = replies.Reply(body, 0)  # pyright: ignore[reportArgumentType]
        await _unless_gone(request, _drained(reply.events(backend.run(jobs))))
        return replies.scores(body.model, [reply.results[number] for number in range(len(jobs))])

    @api.get("/metrics", include_in_schema=False)
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return api


def _service(app: FastAPI, backend: Any) -> None:
    """What everybody may see, and the page."""

    @app.get("/health", responses={200: {"content": {"application/json": {"example": {"status": "ok"}}}}})
    async def health() -> dict[str, str]:
        """The server is alive."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": replies.ErrorReply, **ERRORS[503]}})
    async def ready() -> dict[str, str]:
        """The model is there, and the server not going down."""
        if not backend.ready or app.state.stopping:
            raise Refused(503, "the model is not ready, or the server is going down", code="not_ready", retry_after=1)
        return {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference.page(app.openapi()), headers=reference.HEADERS)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/assets", StaticFiles(directory=PAGE, check_dir=False))


async def _answered(request: Request, body: Asked, settings: Settings, backend: Any) -> Any:
    _check(body, settings, backend)
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    reply, jobs = replies.begun(body, seed), body.jobs(seed)
    _take(request, jobs, settings)
    events = backend.run(jobs)
    try:
        if body.stream:
            return await _streamed(request, reply, reply.chunks(events))
        await _unless_gone(request, _drained(reply.events(events)))
        return reply.whole()
    finally:
        _note(request, reply)


def _no_model(name: str, backend: Any) -> NoReturn:
    there = ", ".join(one["id"] for one in backend.models)
    message = f"model {shown(name)} is not served here; there are: {there}"
    raise Refused(404, message, param="model", code="model_not_found")


def _ready(backend: Any) -> None:
    if not backend.models:
        raise Refused(503, "the model is not ready yet", code="not_ready", retry_after=1)


def _check(body: Any, settings: Settings, backend: Any) -> None:
    """Refused for what this server does not take, whatever the model."""
    _ready(backend)
    served = {one["id"]: one for one in backend.models}
    if body.model not in served:
        _no_model(body.model, backend)
    asks = "suffix" if getattr(body, "suffix", None) else "model" if isinstance(body, InfillBody) else None
    if asks and not served[body.model].get("infills", True):
        message = (
            f"model {shown(body.model)} writes on and cannot infill; take one whose `infills` is true in /v1/models"
        )
        raise Refused(400, message, param=asks)
    for name, most in reference.limits(settings).items():
        given = getattr(body, name, None) or 0
        if name in body.model_fields_set and given > most:
            raise Refused(400, f"{name} is {given}; this server takes at most {most}", param=name)
    for name, texts in {"prompt": getattr(body, "prompts", ()), "text": getattr(body, "texts", ())}.items():
        if len(texts) > settings.max_prompts:
            message = f"{name} has {len(texts)} texts; this server takes at most {settings.max_prompts} in a request"
            raise Refused(400, message, param=name)


def _take(request: Request, jobs: list[Job], settings: Settings) -> None:
    """What is taken may be logged."""
    if settings.log_prompts:
        request.state.said = [json.dumps([job.input for job in jobs])]


def _note(request: Request, reply: replies.Reply) -> None:
    request.state.tokens, request.state.first = reply.tokens, reply.first


async def _unless_gone(request: Request, work: Awaitable[Done]) -> Done:
    """What `work` gives; it is cancelled, and Gone raised, when whoever asked has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Gone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drained(events: replies.Events) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


async def _streamed(request: Request, reply: replies.Reply, chunks: AsyncGenerator[dict[str, Any]]) -> Response:
    """The chunks as events. What goes wrong before the first is an answer of its own, later on the last event."""
    first = await _unless_gone(request, anext(chunks))

    async def lines() -> AsyncGenerator[str]:
        async with aclosing(chunks):
            try:
                yield _line(first)
                async for chunk in chunks:
                    yield _line(chunk)
                yield "data: [DONE]\n\n"
            except Refused as refused:
                yield _line(replies.error(refused.status, refused.message, refused.param, refused.code))
            finally:
                _note(request, reply)

    return EventStream(lines(), chunks, headers={"cache-control": "no-store", "x-accel-buffering": "no"})


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _errors(app: FastAPI) -> None:
    """Whatever goes wrong has one form."""

    async def refused(request: Request, error: Any) -> Response:
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status in (500, 504):
            headers |= ONCE
        if error.status == 408:
            headers["connection"] = "close"  # nobody waits for the rest of the body
        code = error.code or CODES.get(error.status)
        return JSONResponse(replies.error(error.status, error.message, error.param, code), error.status, headers)

    async def invalid(request: Request, error: Any) -> Response:
        errors = [one | {"loc": one["loc"][1:]} for one in error.errors()]
        body: type[Body] = get_type_hints(request.scope["endpoint"])["body"]
        param, message = objection(errors, error.body, body.model_fields)
        return JSONResponse(replies.error(400, message, param, CODES[400]), 400)

    async def other(request: Request, error: Any) -> Response:
        path = request.url.path[:80]
        message = f"{request.method} {path}: {error.detail}; /docs says what there is"
        document = replies.error(error.status_code, message, code=CODES.get(error.status_code))
        return JSONResponse(document, error.status_code, error.headers)

    async def ours(request: Request, error: Exception) -> Response:
        return JSONResponse(
            replies.error(500, "this is a fault of the server's; its log says more", code="internal_error"), 500, ONCE
        )

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(Exception, ours)


class _Watched:
    """ASGI middleware: every request counted and logged, and the headers that keep a browser from other hosts."""

    def __init__(self, app: Any, metrics: Metrics, routes: set[str]) -> None:
        self.app, self.metrics, self.routes = app, metrics, routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, state, path = time.perf_counter(), scope.setdefault("state", {}), scope["path"]
        families = {"/assets/": "/assets", "/v1/models/": "/v1/models/{name:path}"}
        route = next((name for start, name in families.items() if path.startswith(start)), path)
        route = route if route in self.routes else "other"
        status = 499

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception:  # the answer is made further out
            status = 500
            raise
        finally:
            self.metrics.done(scope["method"], route, status, began, state)
