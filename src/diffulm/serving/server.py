"""The process that listens: from the first signal on it takes nothing new, and ends when what is in flight has."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket

import uvicorn

from diffulm.errors import BadInput
from diffulm.serving.app import application
from diffulm.serving.backend import Backend
from diffulm.serving.connection import connection
from diffulm.serving.job import say
from diffulm.serving.settings import Settings

LINGER = 5.0
"""Seconds for replies that are ready to reach who asked."""


def serve(settings: Settings) -> None:
    """Until a signal comes. BadInput for an address that cannot be listened at, and a model that cannot be served."""
    listener = _listening(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    if not settings.keys and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        say("anybody who reaches this address may ask: --api-keys FILE lets in who has a key")
    asyncio.run(_served(settings, listener))


class _Server(uvicorn.Server):
    """Signals are ours."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return contextlib.nullcontext()


async def _served(settings: Settings, listener: socket.socket) -> None:
    backend, loop = Backend(settings), asyncio.get_running_loop()
    stop, force = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (force if stop.is_set() else stop).set())
    app = application(settings, backend)
    app.openapi()  # half a second that nobody is to wait for later
    server = _Server(
        uvicorn.Config(
            app,
            http=connection(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=int(LINGER),
        )
    )

    async def opened() -> None:
        await backend.open()
        await backend.loaded()
        say(f"ready: {', '.join(one['id'] for one in backend.models)}")
        workers, threads = await backend.complete()
        say(f"workers: {workers}, threads of each: {threads}")
        await stop.wait()

    opening, serving = asyncio.ensure_future(opened()), asyncio.ensure_future(server.serve([listener]))
    told = asyncio.ensure_future(stop.wait())
    await asyncio.wait((opening, serving, told), return_when=asyncio.FIRST_COMPLETED)
    app.state.stopping = True
    if stop.is_set() and (left := backend.running + backend.waiting):
        say(f"stopping; texts in flight: {left}, for at most {settings.grace:g} s; a second signal ends them now")
    closing, forced = asyncio.ensure_future(backend.close(settings.grace)), asyncio.ensure_future(force.wait())
    await asyncio.wait((closing, forced), return_when=asyncio.FIRST_COMPLETED)
    if force.is_set():  # what is in flight ends at once, and whoever asked hears of it
        closing.cancel()
        await backend.close()
    server.should_exit = True
    await serving
    if opening.done():
        opening.result()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        known = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(known) if known else getattr(error, "strerror", None) or error
        raise BadInput(f"cannot listen at {host}:{port}: {reason}; give another --host or --port") from None
