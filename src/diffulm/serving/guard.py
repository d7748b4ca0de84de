"""Who may ask, and how much: looked at before a request is read, and while it is. No torch in here."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from diffulm.errors import shown
from diffulm.serving.job import Refused
from diffulm.serving.settings import Settings

FIELDS = 128
"""Of an object, at most; no request of ours has half as many."""


def route(settings: Settings) -> type[APIRoute]:
    """Routes that look at the key, the kind and the size of a request before they read it."""
    keys = [key.encode() for key in settings.keys]

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                if keys:
                    scheme, _, given = request.headers.get("authorization", "").partition(" ")
                    same = [hmac.compare_digest(key, given.strip().encode("latin-1", "replace")) for key in keys]
                    if scheme.lower() != "bearer" or not any(same):
                        message = "no such API key" if given else "give an API key: Authorization: Bearer KEY"
                        raise Refused(401, message, code="invalid_api_key")
                read = Bounded(request.scope, request.receive)
                read.settings = settings
                if request.method == "POST":
                    kind = Message()
                    kind["content-type"] = request.headers.get("content-type", "")
                    if kind.get_content_type() != "application/json":
                        raise Refused(415, "the body is JSON: send it with Content-Type: application/json")
                    if request.headers.get("content-encoding", "identity").lower() != "identity":
                        raise Refused(415, "the body is sent as it is: leave out Content-Encoding")
                    await read.json()  # here, where what is wrong with it can be said
                return await handle(read)

            return checked

    return Guarded


class Bounded(Request):
    """A request whose body has to come within a time and a size, and be JSON."""

    settings: Settings

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(self.settings.timeout):
                    self._body = await self._read(self.settings.max_body)
            except TimeoutError:
                raise Refused(408, f"the body did not come within {self.settings.timeout:g} s") from None
            except ClientDisconnect:
                raise Refused(499, "whoever asked has gone") from None
        return self._body

    async def _read(self, limit: int) -> bytes:
        said, parts, size = self.headers.get("content-length", "0"), [], 0
        large = Refused(413, f"the body is larger than {limit} bytes: send less, or start the server with --max-body")
        if said.isdecimal() and int(said[:20]) > limit:
            raise large
        async for part in self.stream():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise large
        return b"".join(parts)

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = _parsed(await self.body())
        return self._json


def _parsed(raw: bytes) -> Any:
    if not raw.strip():
        raise Refused(400, "the body is empty: send a JSON object")
    try:
        text = raw.decode("utf-8-sig")  # json would take UTF-16 too, and what is no UTF-8
        found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except UnicodeEncodeError:
        raise Refused(400, "the body has half a character (a lone surrogate): send whole ones") from None
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    except ValueError:
        raise Refused(400, "a number in the body has too many digits") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > FIELDS:
        raise Refused(400, f"an object in the body has more than {FIELDS} fields")
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = shown(next(name for name in names if names.count(name) > 1))
        raise Refused(400, f"an object in the body has the field {twice} twice", param=twice[1:-1])
    return found


def _no_number(name: str) -> float:
    raise Refused(400, f"the body is not JSON: it has no {name}")
