"""The one redactor: it knows the secrets' values and is the last step of everything that leaves the program."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from threading import Lock
from typing import Any
from urllib.parse import quote

from opsctl.times import format_time

MASK = "***"
SHORTEST = 4
"""A shorter secret is masked in URLs only: replacing every "a" would hide everything and protect nothing."""

USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s@/]+@", re.IGNORECASE)
"""``user:password@`` of any URL, known to us or not."""


class Redactor:
    """Masks known secrets wherever they stand in a text.

    A value that is public anyway (a database called like its password) stays readable outside of URLs: masking it
    would hide names without hiding the secret.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._public: set[str] = set()
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._adding = Lock()  # checks open their servers in threads of their own
        self.add(secrets)

    def except_for(self, names: Iterable[str]) -> None:
        """Names that are public: call it before the secrets are added."""
        self._public |= set(names)

    def add(self, secrets: Iterable[str]) -> None:
        """Learn secrets: each as it is, percent-encoded, and as repr, JSON and libpq escape it in a message."""
        with self._adding:
            for secret in secrets:
                if len(secret) >= SHORTEST and secret not in self._public:
                    as_json = (json.dumps(secret, ensure_ascii=flag)[1:-1] for flag in (True, False))
                    self._values |= {secret, quote(secret, safe=""), quote(secret), repr(secret)[1:-1], *as_json}
            longest_first = sorted(self._values, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        return USERINFO.sub(rf"\1{MASK}@", text) if "://" in text else text

    def deep(self, value: Any) -> Any:
        """The same for every string in nested lists, tuples and mappings, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.text(value.decode("utf-8", "replace"))
        if isinstance(value, Mapping):
            return {self.deep(key): self.deep(each) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.deep(each) for each in value]
        return value


def jsonable(value: Any) -> Any:
    """Records as JSON knows them: times in RFC 3339, tuples as lists, mappings with string keys."""
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return value
