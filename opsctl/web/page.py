"""The status page as HTML: one document with everything in it, and the policy that holds a browser to that."""

import unicodedata
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsctl import __version__
from opsctl.amounts import age, duration, size
from opsctl.times import format_time
from opsctl.web.chart import chart_of
from opsctl.web.status import Database, Status

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
COLOURS = {"ok": "12663a", "warn": "b8690f", "crit": "c2181d", "unknown": "6a3aa6"}
"""Of the small sign in the browser's tab."""

REMEMBERED_TEXTS = 20_000
Redact = Callable[[str], str]


class Page:
    """Renders the page. What changes rarely is kept: a text made safe, a chart drawn.

    ``redact`` is applied to every text before it is escaped, so that a secret with ``&`` in it is recognised; it has to
    know every secret from the beginning.
    """

    def __init__(self, redact: Redact) -> None:
        environment = _environment(redact)
        self._page = environment.get_template("status.html")
        self._chart = environment.get_template("chart.html")
        self._drawn: dict[str, tuple[Any, Markup | None]] = {}

    def render(self, status: Status, *, refresh_seconds: int | None = None) -> str:
        return self._page.render(
            s=status,
            charts=[self._chart_of(each, number, status.now) for number, each in enumerate(status.databases, 1)],
            colour=COLOURS[status.state],
            version=__version__,
            refresh=refresh_seconds,
        )

    def _chart_of(self, database: Database, number: int, now: datetime) -> "Markup | str":
        """A database's chart, drawn anew when something on it is new or time has moved it by a hundredth."""
        from markupsafe import Markup

        first = database.backups[-1].created_at if database.backups else now
        step = max((now - first).total_seconds() / 100, 60)
        shows = number, database.backups, database.failures, int(now.timestamp() / step)
        known = self._drawn.get(database.name)
        if known is None or known[0] != shows:
            chart = chart_of(database.backups, database.failures, now)
            text = self._chart.render(database=database, c=chart, key=f"database-{number}") if chart else ""
            known = self._drawn[database.name] = shows, Markup(text)  # noqa: S704 - rendered with every text escaped
        return known[1] or ""


@cache
def content_policy() -> str:
    """What a browser may load for the page: nothing, and the one style that is in it."""
    digest = b64encode(sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def visible(text: str) -> str:
    """A text without what could change how the rest of the page reads: control, format and half characters escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_plain(character) else _escaped(character) for character in text)


def _is_plain(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


@cache
def _style() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def _environment(redact: Redact) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    @lru_cache(maxsize=REMEMBERED_TEXTS)
    def safe(text: str) -> Markup:
        return escape(visible(redact(text)))

    def shown(value: Any) -> Any:
        """Whatever an expression of the template comes to."""
        return safe(value) if type(value) is str else value  # Markup is a str, too

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": _ago,
        "until": lambda moment, now: f"in {age(now, moment)}",
        "utc": lambda moment: f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "date": lambda moment: f"{moment.astimezone(UTC):%d %b}",
        "rfc3339": format_time,
        "size": size,
        "duration": duration,
    }
    environment.globals["style"] = Markup(_style())  # noqa: S704 - our own file
    return environment


def _ago(moment: datetime, now: datetime) -> str:
    if moment > now + timedelta(seconds=1):
        return f"in {age(now, moment)}"
    return f"{age(min(moment, now), now)} ago"
