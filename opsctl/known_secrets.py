"""What of an address, a file of keys or a variable is secret, for the redactor. Pure."""

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

SECRET_NAME = re.compile(r"pass|secret|token|key\b|credential|auth|dsn|private", re.IGNORECASE)
SHORTEST = 6
"""A variable with a secret's name and a shorter value (``AUTH=on``) is no secret."""


def url_secrets(url: str) -> Iterator[str]:
    """What is secret in a URL: its password (a Sentry DSN's public key counts as one), raw and decoded."""
    try:
        parts = urlsplit(url)
        secret = parts.password or (parts.username if parts.scheme in {"http", "https"} else None)
    except ValueError:
        return
    if secret:
        yield secret
        yield unquote(secret)


TOKEN = re.compile(r"(?=.*[A-Za-z])((?=.*\d)[\w:~-]{8,}|[\w:~-]{20,})")
"""A part of an address that nobody would choose as a word: letters and digits, or many letters; no dots."""


def endpoint_secrets(url: str) -> Iterator[str]:
    """What is secret in an address that needs no other key: all of it, its password, and every part like a token."""
    yield url
    userinfo, _, rest = url.partition("://")[2].rpartition("@")
    password = userinfo.partition(":")[2]
    parts = re.split(r"[/?&=#,;]", f"{userinfo}/{rest}")
    for part in (password, *(part for part in parts if TOKEN.fullmatch(unquote(part)))):
        yield part
        yield unquote(part)


def key_secrets(text: str) -> Iterator[str]:
    """What is secret in a file of keys: every line but comments and the marks around an OpenSSH key."""
    lines = (line.strip() for line in text.splitlines())
    return (line for line in lines if line and not line.startswith(("#", "-----")))
