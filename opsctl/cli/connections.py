"""Every connection of a configuration, tried once: what `init` does before it writes anything."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.errors import ConfigurationError, OpsctlError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.storage import TrialStatus

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True)
class Connection:
    """What one connection came to. Without a ``vital`` one no backup can be taken."""

    subject: str
    status: "TrialStatus"
    message: str
    hint: str | None = None
    error: OpsctlError | None = None
    """Why not, for a vital one."""


def try_connections(session: "Session") -> Iterator[Connection]:
    """Databases, repositories, services, Sentry; each is told as soon as it has been tried."""
    for name in session.config.databases:
        yield _tried(f"database {name}", lambda name=name: _database(session, name))  # type: ignore[misc]
    for name in session.repositories:
        yield from _repository(session, name)
    if session.config.services:
        yield _services(session)
    if session.config.sentry_dsn:
        yield _sentry(session)


def _tried(subject: str, attempt: Callable[[], str]) -> Connection:
    try:
        return Connection(subject, "ok", attempt())
    except OpsctlError as error:
        return Connection(subject, "fail", error.message, error.hint, error)


def _database(session: "Session", name: str) -> str:
    """It is reached, and there is a pg_dump for it."""
    server = session.server(name)
    with server.connect():
        info = server.info
    binaries = session.tools_of(name).for_dump(info.major)
    return f"PostgreSQL {info.version} lets {info.user} in; pg_dump {binaries.version} will dump it."


def _repository(session: "Session", name: str) -> Iterator[Connection]:
    from opsctl.errors import RepositoryUnreachable
    from opsctl.repository_check import examine

    subject = f"repository {name}"
    examined = examine(session.repositories[name], clock=session.clock)
    troubles = [trial for trial in examined.trials if trial.status in {"warn", "fail"}]
    if not troubles:
        yield Connection(subject, "ok", f"{examined.url} can be written, read and listed.")
    for trial in troubles:
        is_fatal = trial.vital and trial.status == "fail"
        error = RepositoryUnreachable(trial.message, hint=trial.hint) if is_fatal else None
        yield Connection(subject, trial.status, trial.message, trial.hint, error)


def _services(session: "Session") -> Connection:
    """Docker answers, and the services are there; they may come later."""
    try:
        missing = [name for name in session.config.services if not session.services.now(name)]
    except OpsctlError as error:
        return Connection("services", "warn", error.message, error.hint)
    if missing:
        hint = "Start them (docker compose up -d), or correct compose_project."
        return Connection("services", "warn", f"There is no container of {', '.join(missing)}.", hint)
    return Connection("services", "ok", f"Docker has containers of {', '.join(session.config.services)}.")


def _sentry(session: "Session") -> Connection:
    from opsctl.config_problems import check_dsn

    try:
        check_dsn(session.config.sentry_dsn or "", where="Sentry")
    except ConfigurationError as error:
        return Connection("Sentry", "warn", error.message, error.hint)
    return Connection("Sentry", "ok", "The DSN looks like one; `opsctl notify test` sends something.")


def as_table(connections: list[Connection]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for each in connections:
        message = Text(each.message)
        if each.hint and each.status != "ok":
            message.append(f" {each.hint}", style="dim")
        table.add_row(Text(each.status, style=STYLES[each.status]), each.subject, message)
    return table
