"""What looks like a secret, though nobody told us its value: for texts that others wrote and that leave this host.

The redactor masks values it knows. A container's log, a statement, a command line may hold ones that nobody
configured; where such texts go into a timeline, an export or a bundle, what has the shape of a secret goes too.
"""

import re
from itertools import pairwise
from typing import Any

from opsctl.telemetry.redact import MASK

WORD = (
    r"(?:password|passwd|passphrase|(?<![a-z])(?:db|my|pg|root|user)?pass(?![a-z])|pwd|secret|token(?!s\b)|api[_-]?key"
    r"|access[_-]?key|private[_-]?key|signature|credential|authorization|session[_-]?id|dsn"
    r"|(?-i:(?<=[A-Z0-9])_(?:KEY|AUTH)(?![A-Z])))"
)
REST = r"[\w.-]{0,40}"
"""Of a name. Nothing here is unbounded: a log may be one line of a megabyte."""

QUOTED = r"""(?:E?"(?:[^"\\]|\\.){0,2000}"|\\"(?:[^"\\]|\\[^"]){0,2000}\\"|E?'(?:[^'\\]|\\.|''){0,2000}')"""
BARE = r"""["']?[^\s"'\\,;&)\]}]{1,2000}"""

PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN ([A-Z ]{0,20}PRIVATE KEY)-----.{0,20000}?(?:-----END \1-----|\Z)", re.DOTALL),
        rf"-----BEGIN \1-----{MASK}",
    ),
    (re.compile(r"\b((?:set-)?cookie)\b(\"?\s{0,5}[:=]\s{0,5})[^\r\n]+", re.IGNORECASE), rf"\1\2{MASK}"),
    (re.compile(r"\b(bearer|basic|digest|negotiate|apikey)(\s{1,5})[\w+/=.~:-]{6,}", re.IGNORECASE), rf"\1\2{MASK}"),
    # password = x, "token": "x", PGPASSWORD=x, ?signature=x
    (
        re.compile(
            rf"""({WORD}{REST}\\?["']?\s{{0,5}}(?:=>|:=|=|:(?!:)|%3D)\s{{0,5}})(?:{QUOTED}|{BARE})""", re.IGNORECASE
        ),
        rf"\1{MASK}",
    ),
    # --api-key x
    (
        re.compile(rf"""((?<![\w-])-[\w-]{{0,40}}{WORD}{REST}\s{{1,5}})(?:{QUOTED}|(?!-){BARE})""", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    # CREATE ROLE … PASSWORD 'x'
    (re.compile(rf"\b((?:password|identified\s{{1,5}}by)\s{{1,5}}){QUOTED}", re.IGNORECASE), rf"\1{MASK}"),
    # user:password@ and token@ of any URL, also percent-encoded as a whole
    (re.compile(r"([a-z]://[^\s/:@\"']{0,200}:)[^\s@\"']{1,200}@", re.IGNORECASE), rf"\1{MASK}@"),
    (re.compile(r"(\bhttps?://)[^\s/:@\"']{1,500}@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(r"(%3A%2F%2F(?:(?!%40|%3A|%2F)[^\s&\"']){0,200}%3A)(?:(?!%40)[^\s&\"']){1,200}%40", re.IGNORECASE),
        rf"\1{MASK}%40",
    ),
    # tokens that say by themselves what they are
    (
        re.compile(
            r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeoprs]-[\w-]{10,}"
            r"|[spr]k_(?:live|test)_\w{10,}|sk-[\w-]{20,}|AIza[\w-]{30,}|npm_\w{30,}|SG\.[\w-]{16,}\.[\w-]{16,}"
            r"|AGE-SECRET-KEY-1[0-9A-Z]+|\d{8,10}:[\w-]{35}|eyJ[\w-]{8,2000}\.[\w-]{8,2000}\.[\w-]{0,2000})"
        ),
        MASK,
    ),
)


IS_NAME = re.compile(WORD, re.IGNORECASE)
IS_OPTION = re.compile(rf"-[\w-]{{0,40}}{WORD}{REST}", re.IGNORECASE)


def without_shapes(text: str) -> str:
    """A text without what looks like a secret."""
    for pattern, masked in PATTERNS:
        text = pattern.sub(masked, text)
    return text


def deep_without_shapes(value: Any) -> Any:
    """The same for every string in nested lists and mappings; what stands under a secret's name is masked whole."""
    if isinstance(value, str):
        return without_shapes(value)
    if isinstance(value, dict):
        return {
            key: MASK if isinstance(each, str) and each and IS_NAME.search(str(key)) else deep_without_shapes(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        masked = [deep_without_shapes(each) for each in value]
        for number, (option, each) in enumerate(pairwise(value), 1):
            if isinstance(each, str) and isinstance(option, str) and IS_OPTION.fullmatch(option) and each[:1] != "-":
                masked[number] = MASK
        return masked
    return value
