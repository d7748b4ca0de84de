"""One connection to the server: who sends too slowly, or does not read, loses it; and there are only so many. No torch."""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffulm.serving import replies
from diffulm.serving.settings import MOST, Settings

HEAD = 20.0
"""Seconds that the head of a request may take, from the connection or the last answer on."""
REST = 10.0
"""Seconds that the rest of a body may take which nobody reads any more."""
UNREAD = 60.0
"""Seconds that an answer may lie unread by who asked."""
SPARE = 256
"""Connections beyond those whose texts are computed or wait."""
FILES = 64
"""That the process may open beside connections."""


def connection(settings: Settings) -> type[H11Protocol]:
    """What uvicorn makes for each connection."""
    most = min(
        settings.rows * (settings.workers or MOST) + settings.queue + SPARE,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES,
    )

    class Connection(H11Protocol):
        waits: tuple[type, bool] | None = None
        """What is to come from the client: None where it is not its turn."""
        since = 0.0
        _late: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look()
            if len(self.connections) > most:  # whoever has been silent longest makes room
                every: list[Any] = list(self.connections)
                silent = [one for one in every if one.waits is not None]
                victim = min(silent, key=lambda one: one.since, default=self)
                victim.waits = None  # it goes a moment later: nobody is to choose it again
                victim.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._late, self._unread):
                if timer is not None:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(UNREAD, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the answer is on its way, or was given
                self.transport.close()
                return
            body = json.dumps(replies.error(400, msg, code="invalid")).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            events = h11.Response(status_code=400, headers=list(headers.items())), h11.Data(body), h11.EndOfMessage()
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            self.transport.close()

        def _look(self) -> None:
            """Begin to count when the client's turn comes, and when it has to send something else."""
            state, answered = self.conn.their_state, self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
            waits = (state, answered) if state in (h11.IDLE, h11.SEND_BODY) else None
            if waits == self.waits:
                return
            self.waits, self.since = waits, self.loop.time()
            if self._late is not None:
                self._late.cancel()
            if waits is not None:
                body = REST if answered else settings.timeout + REST
                self._late = self.loop.call_later(HEAD if state is h11.IDLE else body, self.transport.abort)

    return Connection
