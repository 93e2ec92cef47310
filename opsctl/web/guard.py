"""Who may ask: a known Host, and the token where there is one. Pure, but for the middleware at the end."""

import base64
import binascii
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz"})
"""What says nothing, and is asked by address from wherever a supervisor is."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""What every answer carries; the page adds its content policy."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def is_known_host(header: str, names: Collection[str]) -> bool:
    """Whether a Host header means us. An address does: only a *name* can be made to point here by somebody else."""
    name = header.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".") in names
    return True


def given_token(authorization: str) -> str | None:
    """The token of an Authorization header: as a bearer, or as the password of any user (what browsers ask for)."""
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def refusal(path: str, headers: Mapping[bytes, bytes], *, names: Collection[str], token: str | None) -> Refusal | None:
    """Why a request to ``path`` may not be answered, if so."""
    if path in OPEN_PATHS:
        return None
    if not is_known_host(headers.get(b"host", b"").decode("latin-1"), names):
        text = "This server is not known by that name. [serve] allowed_hosts in opsctl.toml names those it has."
        return Refusal(421, text)
    if token is None:
        return None
    given = given_token(headers.get(b"authorization", b"").decode("latin-1"))
    if given is not None and compare_digest(given.encode("utf-8", "replace"), token.encode()):
        return None
    text = "A token is needed: as `Authorization: Bearer TOKEN`, or as the password of any user."
    return Refusal(401, text, ((b"www-authenticate", b'Basic realm="opsctl", charset="UTF-8"'),))


class Guard:
    """Refuses what may not be asked, and sends the headers that hold a browser to what it gets."""

    def __init__(self, application: Application, *, names: Collection[str], token: str | None) -> None:
        self._application = application
        self._names = frozenset(name.lower() for name in names)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in HEADERS if each[0] not in present)]
            await send(message)

        refused = refusal(scope["path"], dict(scope["headers"]), names=self._names, token=self._token)
        if refused is None:
            await self._application(scope, receive, with_headers)
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8"), *refused.headers]
        await with_headers({"type": "http.response.start", "status": refused.status, "headers": headers})
        await with_headers({"type": "http.response.body", "body": f"{refused.text}\n".encode()})
