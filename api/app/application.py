"""The HTTP application: a Quart-Trio app whose handlers have the service answer a body.

Theory of operation. Who serves clients, the door or Hypercorn, calls it in a task for each request. In it an
`Exchange` (Quart's public hook `asgi_http_class`) does, in this order:

    head    what may be refused by the head alone is: framing, sizes, Host, Origin, token
    body    of a command it is read whole: capped, within the budget of all bodies, before its deadline
    work    Quart routes to a handler. A second task watches the client, and cancels the handler when the
            client leaves; that is how a parked pop is withdrawn
    answer  from here on nothing is cancelled; then Hypercorn closes or recycles the connection

Quart-Trio's own class cancels everything as soon as the client is gone, Hypercorn's close included, so
that `Connection: close` never closed (docs/architecture.md, The HTTP stack); and it does not know who comes first.

The rules that hold here:

- Between the return of the service and the `send` of its answer there is no checkpoint: a reply that was
  given is a reply that is handed over.
- `receive` is always being read from, or the body is over: Hypercorn's reader never blocks on our queue.
- Every answer is JSON or empty. A defect is logged with its traceback and answered without.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope
from quart import Response, request
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import HTTPException

from api.app.hypercorn_fixes import connections_open
from api.dialects.answers import Answer, failure
from api.http.access import Access
from api.http.body import HeldBody
from api.http.head import Head
from api.http.judge import CHECKPOINT, METHODS, STATS, Judge, too_large
from api.http.probes import PROBES, Probes
from api.http.refusals import Refusals
from api.http.service import BODIES_FULL, PATHS, Service
from engine.face import Face, FoldFailed, Folds
from engine.limits import KIB, Limits
from engine.replies import Error

_logger = logging.getLogger("holdfast.http")

_JSON = "application/json"
_SMALL_BODY_BYTES = 64 * KIB

CHECKPOINT_WAITERS_MAX = 64
"""Clients that wait for a checkpoint at once. Nothing else in the application waits for anything slow."""


@dataclasses.dataclass(frozen=True, slots=True)
class HttpSettings:
    """What the application is told when it is made.

    Attributes:
        limits: of the product.
        access: who may speak to the server.
        body_timeout_s: from the end of the head to the end of the body.
        linger_s: how long the rest of a body is thrown away behind an answer that did not wait for it.
    """

    limits: Limits
    access: Access
    body_timeout_s: float = 60.0
    linger_s: float = 1.0


class _Body(HeldBody):
    """Stands where Quart has its own body class, and is told what that is told."""

    def __init__(self, _expected: int | None = None, _max: int | None = None) -> None:
        super().__init__()


class _Request(TrioRequest):
    body_class = _Body  # type: ignore[assignment]  # Quart's own is two events and a buffer, or a channel


class HttpApp(QuartTrio):
    """The application. Made by `create_app`; Hypercorn serves it.

    Attributes:
        service: what answers the commands.
        probes: what answers the probes.
        settings: as given.
        judge: says which requests are refused by their head.
        requests_open: requests whose answer is not sent yet.
        refusals: counts what is refused, while Hypercorn serves clients alone.
        traffic: counts the clients, for `/stats`; who serves them in Hypercorn's stead puts its own count here.
    """

    request_class = _Request

    def __init__(self, service: Service, settings: HttpSettings) -> None:
        super().__init__("holdfast", static_folder=None)
        self.asgi_http_class = Exchange  # type: ignore[assignment]  # its app is an HttpApp
        self.config["PROPAGATE_EXCEPTIONS"] = False
        self.url_map.merge_slashes = False  # it redirects, with a page of HTML
        self.service = service
        self.probes = Probes(service.engine.readiness)
        self.settings = settings
        self.requests_open = 0
        self.judge = Judge(settings.access, settings.limits.body_bytes_max)
        self.refusals = Refusals()
        self.traffic = self._traffic

    def _traffic(self) -> dict[str, int]:
        counted = {"connections": connections_open(), "requests_open": self.requests_open}
        return counted | self.refusals.statistics()


def create_app(engine: Face, settings: HttpSettings, service: Service | None = None) -> HttpApp:
    """Makes the application.

    Args:
        engine: runs the commands.
        settings: limits, access and deadlines.
        service: to answer them with, for whoever had one before there was an engine; None makes one.

    Returns:
        The app; serve it with Hypercorn on trio.
    """
    app = HttpApp(service or Service(engine, settings.limits), settings)
    app.logger = _logger  # instead of one with Quart's own handlers

    async def command() -> Response:
        return _response(await app.service.answer(request.path, request.body))  # type: ignore[arg-type]  # `_Request`

    async def probe() -> Response:
        return _response(app.probes.answer(request.path))

    async def stats() -> Response:
        members = dataclasses.asdict(engine.statistics())
        members |= app.traffic()
        members["tasks"] = trio.lowlevel.current_statistics().tasks_living
        return _response(Answer(200, _encode(members)))

    views = {**dict.fromkeys(PATHS, command), **dict.fromkeys(PROBES, probe), STATS: stats}
    if isinstance(engine, Folds):
        views[CHECKPOINT] = _checkpoint_of(engine)
    for path, view in views.items():
        app.add_url_rule(path, view_func=view, methods=METHODS[path], provide_automatic_options=False)
    app.register_error_handler(HTTPException, _http_error)
    return app


class Exchange(TrioASGIHTTPConnection):
    """One request and its answer, from the head to the last byte that is sent."""

    app: HttpApp

    def __init__(self, app: HttpApp, scope: HTTPScope) -> None:
        super().__init__(app, scope)
        self._gone = False  # the client
        self._working = trio.CancelScope()
        self._lingering = trio.CancelScope()
        self._body = _Body()
        self._thrown = 0
        self._close = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answers the request; called by Hypercorn."""
        self.app.requests_open += 1
        try:
            refusal = self._judge_head()
            if refusal is None and self._is_command():
                refusal = await self._read_body(receive)
                if refusal is not None:
                    self._body.release()  # now, not when the client has its answer: others may need the budget
            if not self._gone:
                await self._serve(refusal, receive, send)
        finally:
            self._body.release()
            self.app.requests_open -= 1

    def _judge_head(self) -> Answer | None:
        """Returns the answer to a request that is refused by its head alone."""
        self._head = head = Head(self.scope)
        self._body_over = not head.has_body
        fault = head.fault()
        if fault is not None:
            self._close = True
            return failure(*fault)
        return self.app.judge.refusal(self.scope, head)

    def _is_command(self) -> bool:
        return self.scope["method"] == "POST" and self.scope["path"] in PATHS

    async def _read_body(self, receive: ASGIReceiveCallable) -> Answer | None:
        """Reads the body; returns the answer to a request whose body is refused."""
        settings = self.app.settings
        data = io.BytesIO()  # not a list: a body can come in chunks of one byte
        with trio.move_on_after(settings.body_timeout_s):
            while not self._body_over:
                piece = await self._receive(receive)
                if self._gone:
                    return None
                if data.tell() + len(piece) > settings.limits.body_bytes_max:
                    return too_large(settings.limits.body_bytes_max)
                data.write(piece)
                if not self._body.hold(self.app.service.budget, data.tell()):
                    return BODIES_FULL
            self._body.data = data.getvalue()
            return None
        return failure(408, "request timeout", f"a body has {settings.body_timeout_s:g} s to arrive")

    async def _receive(self, receive: ASGIReceiveCallable) -> bytes:
        message = await receive()
        if message["type"] == "http.request":
            self._body_over = not message.get("more_body", False)
            return message.get("body", b"")
        self._gone = self._body_over = True
        return b""

    async def _serve(self, refusal: Answer | None, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, receive)
            response: ResponseTypes | None = None
            if refusal is not None:
                self.app.refusals.note(refusal, self._peer)
                response = _response(refusal)
            else:
                with self._working:
                    response = await self._work(send)
                if response is not None:
                    self.app.refusals.count(response.status_code)
            if response is not None:
                await self._answer(response, send)
            nursery.cancel_scope.cancel()

    def _peer(self) -> str:
        client = self.scope.get("client")
        return client[0] if client else "a client"

    async def _watch(self, receive: ASGIReceiveCallable) -> None:
        """Ends the work when the client leaves, and throws away what still comes of a body."""
        while not self._gone:
            self._thrown += len(await self._receive(receive))
            if self._lingered():
                self._lingering.cancel()
        self._working.cancel()

    def _lingered(self) -> bool:
        return self._body_over or self._thrown > self.app.settings.limits.body_bytes_max

    async def _work(self, send: ASGISendCallable) -> ResponseTypes:
        request = self._create_request_from_scope(send)
        request.body = self._body  # type: ignore[assignment]  # `_Request.body_class`
        try:
            return await self.app.handle_request(request)
        except Exception:
            _logger.exception("a request failed")
            return _response(failure(500, Error.INTERNAL_ERROR.value))

    async def _answer(self, response: ResponseTypes, send: ASGISendCallable) -> None:
        """Hands the answer over, without a checkpoint before it if the body is over.

        Closing over bytes that were not read resets the connection, and the client loses the answer. So
        behind an early answer the body is thrown away for a moment; a small one even before the answer,
        and the connection can stay open.
        """
        if self._head.length is not None and self._head.length <= _SMALL_BODY_BYTES:
            await self._wait_for_body()
        data = await response.get_data(as_text=False)  # type: ignore[misc]  # never werkzeug's own here
        headers = encode_headers(response.headers)
        early = not self._body_over
        if early or self._close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        if early:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = b""
            await self._wait_for_body()
        await send({"type": "http.response.body", "body": data, "more_body": False})

    async def _wait_for_body(self) -> None:
        """Waits, not for long, until `_watch` has thrown away what is still coming of the body."""
        if not self._lingered():
            with trio.move_on_after(self.app.settings.linger_s) as self._lingering:
                await trio.sleep_forever()


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, content_type=_JSON)
    if not answer.body:
        del response.headers["Content-Type"]
    if answer.status == 503:
        response.headers["Retry-After"] = "1"
    elif answer.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    elif answer.status == 415:
        response.headers["Accept-Encoding"] = "identity"
    if answer.allow:
        response.headers["Allow"] = answer.allow
    return response


def _checkpoint_of(engine: Folds) -> Callable[[], Coroutine[Any, Any, Response]]:
    waiting = 0

    async def checkpoint() -> Response:
        nonlocal waiting
        if waiting == CHECKPOINT_WAITERS_MAX:
            return _response(failure(503, Error.UNAVAILABLE.value, "too many clients wait for a checkpoint already"))
        waiting += 1
        try:
            done = await engine.checkpoint()
        except FoldFailed as error:
            return _response(failure(503, Error.UNAVAILABLE.value, str(error)))
        finally:
            waiting -= 1
        return _response(Answer(200, _encode(dataclasses.asdict(done))))

    return checkpoint


async def _http_error(error: HTTPException) -> Response:
    """Answers in JSON what Quart refuses by itself, where the judge let a request pass."""
    status = error.code or 500
    text = Error.INTERNAL_ERROR.value if status == 500 else HTTPStatus(status).phrase.lower()
    return _response(failure(status, text))


def _encode(members: dict[str, Any]) -> bytes:
    return json.dumps(members, allow_nan=False).encode()
