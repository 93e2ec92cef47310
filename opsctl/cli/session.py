"""One run of a command: what it is given, and the one place where every error ends."""

import inspect
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    DoctorExit,
    ExitCode,
    Interrupted,
    OpsctlError,
    Refused,
    ServiceFailed,
    ServicesUnreachable,
    UsageError,
)

if TYPE_CHECKING:
    from opsctl.cli.output import Outcome, Output
    from opsctl.config import Config
    from opsctl.encryption import Identities, Recipients
    from opsctl.keys import Keys
    from opsctl.postgres.server import Server
    from opsctl.postgres.tools import Tools
    from opsctl.repository import Repository
    from opsctl.restore import SwapSettings
    from opsctl.retention import Policy
    from opsctl.services import Service, ServiceRuntime
    from opsctl.services.names import Services
    from opsctl.settings import RepositorySettings
    from opsctl.signing import SigningKey

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The configuration file.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.")]

COMMON = {
    "config": (ConfigOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "debug": (DebugOption, False),
}
"""The options every command takes, with their defaults."""

NOT_REPORTED = frozenset({ExitCode.USAGE, ExitCode.REFUSED, ExitCode.INTERRUPTED})
"""What is no failure of a backup or a server, hence no business of Sentry."""

PLUGINS = frozenset({"doctor"})
"""Commands a monitoring system runs: their exit code is a verdict, and whatever they could not do is "unknown"."""

RUN_AGAIN = "What was begun is cleaned up; run it again."


@dataclass(frozen=True)
class Options:
    config: Path | None = None
    json: bool = False
    quiet: bool = False
    debug: bool = False


class Session:
    """What a command works with; everything is opened when it is first asked for."""

    def __init__(self, command: str, options: Options) -> None:
        from opsctl.cli.output import JsonOutput, TextOutput
        from opsctl.telemetry.redact import Redactor

        self.command = command
        self.options = options
        self.run_id = secrets.token_hex(8)
        self.started_at = self.clock()
        self.redactor = Redactor()
        self.output: Output = (
            JsonOutput(self.redactor) if options.json else TextOutput(self.redactor, quiet=options.quiet)
        )

    def clock(self) -> datetime:
        return datetime.now(UTC)

    @cached_property
    def config(self) -> "Config":
        """The configuration; from here on the redactor knows its secrets."""
        from opsctl.config import load_config

        config = load_config(self.options.config)
        names = {*config.databases, *config.repositories, *config.services, "postgres"}
        self.redactor.except_for(names)
        self.redactor.add(config.secrets())
        self.configure_logs(config.environment.log_format)
        return config

    def configure_logs(self, format_name: Any = None) -> None:
        from opsctl.telemetry.logs import bind_run, configure_logs, default_format

        configure_logs(
            format=format_name or default_format(sys.stderr),
            quiet=self.options.quiet,
            debug=self.options.debug,
            redactor=self.redactor,
            stream=sys.stderr,
        )
        bind_run(run_id=self.run_id, command=self.command)

    def database_names(self, wanted: list[str] | None) -> list[str]:
        """The configured databases that were named, or all of them. Raises ConfigurationError."""
        names: list[str] = []
        for name in wanted or list(self.config.databases) or [""]:
            if self.config.database(name).all and not self.config.is_of_all(name):
                names += self._databases_of_server(name)
            else:
                names.append(name)
        return list(dict.fromkeys(names))

    def _databases_of_server(self, section: str) -> list[str]:
        """Every database of a section with ``all = true``; the section itself when its server does not answer.

        That one then fails like any other database, without stopping the others.
        """
        from opsctl.postgres.server import list_databases
        from opsctl.postgres.swap import is_ours

        excluded = self.config.database(section).exclude
        try:
            found = list_databases(self.server(section))
        except OpsctlError:
            return [section]
        return [name for name in found if not is_ours(name) and not any(fnmatchcase(name, each) for each in excluded)]

    def server(self, database: str) -> "Server":
        from opsctl.postgres.server import Server

        settings = self.config.database(database)
        password = self.config.password(database)
        self.redactor.add(self.config.secrets())
        return Server(
            self.config.database_url(database),
            database=database if self.config.is_of_all(database) else None,
            password=password,
            maintenance_database=settings.maintenance_database,
            address=self._service_address(database) if settings.service else None,
        )

    def _service_address(self, database: str) -> tuple[str, int]:
        """Where the container of a database's service is reached."""
        try:
            container = self._service_of(database)
            found = self.runtime.address(container, self.config.database_port(database))
        except (ServiceFailed, ServicesUnreachable) as error:
            raise DatabaseUnreachable(
                f"{database!r} cannot be reached: {error.message}", hint=error.hint, reason="container"
            ) from error
        return found.host, found.port

    def _service_of(self, database: str) -> "Service":
        """The container a database is in: one that runs, if there are several."""
        found = self.services.named(self.config.database(database).service or database)
        return next((each for each in found if each.state.is_running), found[0])

    def server_at(self, url: str) -> "Server":
        """A server that is not configured, by its URL; its password is a secret from here on."""
        from opsctl.config import checked_url, url_secrets
        from opsctl.postgres.server import Server

        self.redactor.add(url_secrets(url))
        return Server(checked_url(url, where="--to"))

    def swap_settings(self, database: str) -> "SwapSettings":
        """The hooks around a swap of this database, and its standbys."""
        from opsctl.postgres.server import Server
        from opsctl.restore import SwapSettings

        settings = self.config.database(database)
        replicas = [
            Server(url.get_secret_value(), password=self.config.password(database)) for url in settings.replica_urls
        ]
        return SwapSettings(settings.before_swap, settings.after_swap, replicas)

    @cached_property
    def repositories(self) -> dict[str, "Repository"]:
        """All configured repositories by name."""
        from opsctl.repository import Repository
        from opsctl.storage import open_storage

        repositories = {}
        for name in self.config.repositories:
            settings = self.config.repository(name)
            storage = open_storage(settings.url, settings)
            self.redactor.add(storage.secrets())
            repositories[name] = Repository(name, storage, self._lock_for(name, settings))
        return repositories

    def _lock_for(self, name: str, settings: "RepositorySettings") -> timedelta | None:
        """How long a repository's backups are locked: no longer than its retention is sure to keep them."""
        if settings.object_lock == "off":
            return None
        span = timedelta(days=settings.object_lock_days or 0) or self.policies[name].certain_span
        if not span:
            raise ConfigurationError(
                f"{self.config.source}: repositories.{name}.object_lock: the retention does not say for how long.",
                hint="Set object_lock_days, or keep_daily, keep_hourly or keep_within in its retention.",
            )
        return span

    def repositories_of(self, database: str) -> list["Repository"]:
        return [self.repositories[name] for name in self.config.repositories_of(database)]

    @cached_property
    def recipients(self) -> "Recipients | None":
        """Who backups are encrypted to, if they are. Raises ConfigurationError."""
        from opsctl.encryption import parse_recipients

        keys = self.config.encryption.recipients
        return parse_recipients(keys, where=f"{self.config.source}: encryption.recipients") if keys else None

    @cached_property
    def keys(self) -> "Keys":
        """What opens backups here, and whose signatures count. Raises ConfigurationError."""
        from opsctl.keys import Keys
        from opsctl.signing import parse_public_keys

        trusted = self.config.signing.public_keys
        where = f"{self.config.source}: signing.public_keys"
        return Keys(self._identities, parse_public_keys(trusted, where=where) if trusted else ())

    def _identities(self) -> "Identities | None":
        from opsctl.encryption import parse_identities

        text = self.config.identity()
        if text is None:
            return None
        self.redactor.add(self.config.secrets())
        return parse_identities(text, where=f"{self.config.source}: the configured identity")

    @cached_property
    def signing_key(self) -> "SigningKey | None":
        """What manifests are signed with, if they are. Raises ConfigurationError."""
        from opsctl.signing import parse_signing_key

        text = self.config.signing_key()
        if text is None:
            return None
        self.redactor.add(self.config.secrets())
        key = parse_signing_key(text, where=f"{self.config.source}: signing.key_file")
        if self.keys.trusted and key.public_key not in self.keys.trusted:
            raise ConfigurationError(
                f"{self.config.source}: signing.key_file signs as {key.public_key}, which signing.public_keys lacks.",
                hint="Add it there: a restore would refuse what is signed with it.",
            )
        return key

    @cached_property
    def policies(self) -> dict[str, "Policy"]:
        """Every repository's retention."""
        from opsctl.retention import Policy, parse_duration

        policies = {}
        for name, settings in self.config.repositories.items():
            values = settings.retention.model_dump()
            within = values.pop("keep_within")
            policies[name] = Policy(**values, keep_within=parse_duration(within) if within else None)
        return policies

    @cached_property
    def tools(self) -> "Tools":
        from opsctl.postgres.tools import Tools

        return Tools(search_path=self.config.search_path, environment=self.config.child_environment)

    def tools_of(self, database: str) -> "Tools":
        """What a database is dumped and restored with; this host's programs for one that is not configured any more."""
        from opsctl.postgres.programs import InsideContainer
        from opsctl.postgres.tools import Tools

        settings = self.config.databases.get(self.config.section_of(database) or "")
        if settings is None or settings.tools == "host":
            return self.tools
        environment = self.config.child_environment
        place = InsideContainer(lambda: partial(self.runtime.start, self._service_of(database)), environment)
        return Tools(search_path=self.config.search_path, environment=environment, place=place)

    @cached_property
    def runtime(self) -> "ServiceRuntime":
        """What runs the services."""
        from opsctl.services.docker import Docker

        return Docker(self.config.variables)

    @cached_property
    def services(self) -> "Services":
        """The services by their names; what is secret in their containers is known from then on."""
        from opsctl.services.names import Services

        return Services(self.runtime, self.config.services, learn_secrets=self.redactor.add)

    def stream_lines(self) -> None:
        """From here on the result is printed line by line; with ``--json`` as JSON lines."""
        from opsctl.cli.output import JsonLinesOutput

        if self.options.json:
            self.output = JsonLinesOutput(self.redactor)

    def progress(self, label: str, total: int | None) -> Callable[[int], None]:
        return self.output.start_progress(label, total)

    @property
    def is_interactive(self) -> bool:
        """Whether there is a person to ask."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.options.json

    def ask(self, question: str) -> str:
        self.output.stop_progress()
        sys.stderr.write(f"{question} ")
        sys.stderr.flush()
        return sys.stdin.readline().strip()

    def confirm(self, name: str, yes: str | None, *, doing: str) -> None:
        """Go on only if a person, or ``--yes``, names what will be changed. Raises Refused."""
        if yes is not None:
            if yes == name:
                return
            raise Refused(f"--yes names {yes!r}, but {doing} concerns {name!r}.", hint=f"--yes {name} confirms it.")
        if not self.is_interactive:
            raise Refused(f"{doing.capitalize()} needs a confirmation.", hint=f"--yes {name} confirms it.")
        if self.ask(f"Type {name} to go on with {doing}:") != name:
            raise Refused("Not confirmed; nothing was changed.", hint=f"Type {name} exactly, or give --yes {name}.")

    def log(self) -> Any:
        from opsctl.telemetry.logs import get_logger

        return get_logger()


Body = Callable[..., "Outcome"]


def command(name: str, body: Body) -> Callable[..., None]:
    """``body(session, …) -> Outcome`` as a function for Typer, with the common options, inside the error boundary."""
    signature = inspect.signature(body)
    own = list(signature.parameters.values())[1:]
    common = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for key, (annotation, default) in COMMON.items()
    ]
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]

    def run(**arguments: Any) -> None:
        options = Options(**{key: arguments.pop(key) for key in COMMON})
        raise typer.Exit(run_command(name, body, options, arguments))

    run.__doc__ = body.__doc__
    run.__name__ = body.__name__
    run.__signature__ = signature.replace(parameters=[*keyword_only, *common], return_annotation=None)  # type: ignore[attr-defined]
    return run


def run_command(name: str, body: Body, options: Options, arguments: dict[str, Any]) -> int:
    """Run one command to its end: every error becomes a message, a hint and the documented exit code."""
    from opsctl.cli.output import Outcome

    session = Session(name, options)
    session.configure_logs()
    _handle_signals()
    try:
        outcome = body(session, **arguments)
    except OpsctlError as error:
        outcome = Outcome(None, error=error)
    except KeyboardInterrupt as error:
        outcome = Outcome(None, error=_interrupted(error))
    except BrokenPipeError:
        return _closed_pipe()
    except Exception as error:  # noqa: BLE001 - the boundary: whatever is left is a bug of ours
        outcome = Outcome(None, error=_bug(session, error))
    return _finish(session, outcome)


def _finish(session: Session, outcome: "Outcome") -> int:
    from opsctl.cli.output import Run

    with suppress(KeyboardInterrupt):
        _report(session, outcome)
    _as_plugin(session, outcome)
    run = Run(session.command, session.run_id, session.started_at, session.clock())
    seconds = (run.finished_at - run.started_at).total_seconds()
    try:
        session.output.stop_progress()
        session.output.finish(run, outcome)
        sys.stdout.flush()
        _log_end(session, outcome, seconds)
    except (BrokenPipeError, SystemExit):  # the latter is Rich's word for it
        return _closed_pipe()
    except OSError as error:  # a full disk
        _closed_pipe()
        unsaid = OpsctlError(
            f"The result could not be printed: {error.strerror}.",
            hint="The work itself was done; only its output is lost.",
        )
        outcome = replace(outcome, error=outcome.error or unsaid)
        _as_plugin(session, outcome)
        with suppress(OSError):
            _log_end(session, outcome, seconds)
    return int(outcome.code)


def _as_plugin(session: Session, outcome: "Outcome") -> None:
    """A plugin's own failures end with UNKNOWN: any other code would be a verdict about what it checks."""
    error = outcome.error
    if session.command in PLUGINS and error is not None and not isinstance(error, Interrupted):
        error.exit_code = DoctorExit.UNKNOWN


def _log_end(session: Session, outcome: "Outcome", seconds: float) -> None:
    """The run's one canonical line."""
    fields = {"exit_code": int(outcome.code), "duration_seconds": round(seconds, 3), **outcome.fields}
    log = session.log()
    if outcome.error is not None:
        if session.options.debug or not sys.stderr.isatty():  # on a terminal the error itself is shown
            log.error(
                "run.failed",
                code=outcome.error.code,
                message=outcome.error.message,
                hint=outcome.error.hint,
                exc_info=outcome.error if session.options.debug else None,
                **fields,
            )
    elif outcome.done:
        log.info("run.finished", **fields)
    else:
        log.warning("run.finished", **fields)


def _report(session: Session, outcome: "Outcome") -> None:
    """Tell Sentry of a failure, if it is configured."""
    error = outcome.error
    if error is None or error.exit_code in NOT_REPORTED:
        return
    try:
        dsn = session.config.sentry_dsn
        environment = session.config.sentry_environment
    except OpsctlError:
        from opsctl.config import environment_dsn

        dsn, environment = environment_dsn(), None  # the configuration itself is what failed
    if not dsn:
        return
    from opsctl.telemetry.sentry import report_failure

    database = str(outcome.fields.get("database", ""))
    sent = report_failure(
        error.__cause__ if error.code == "bug" and error.__cause__ else error,
        dsn=dsn,
        environment=environment,
        redactor=session.redactor,
        tags={"command": session.command, "run_id": session.run_id, "code": error.code, "database": database},
        fingerprint=["opsctl", session.command, error.code, database],
    )
    if not sent:
        session.log().debug("sentry.unsent")


def _bug(session: Session, error: Exception) -> OpsctlError:
    bug = OpsctlError(
        f"This is a bug in opsctl: {type(error).__name__}: {error}",
        hint="Run it again with --debug and report what it prints.",
    )
    bug.exit_code, bug.code = ExitCode.BUG, "bug"
    bug.__cause__ = error
    if session.options.debug or not sys.stderr.isatty():
        session.log().error("run.bug", exc_info=error)
    return bug


def _closed_pipe() -> int:
    """Whoever read our output has left (``opsctl list | head``): end without a word, as other programs do."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return 128 + signal.SIGPIPE


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. As with Ctrl-C, no ``except Exception`` stops it and psycopg cancels its query."""


def _interrupted(error: KeyboardInterrupt) -> Interrupted:
    if isinstance(error, _Ended):
        return Interrupted(f"Ended by {error}.", exit_code=ExitCode.TERMINATED, hint=RUN_AGAIN)
    return Interrupted("Interrupted.", exit_code=ExitCode.INTERRUPTED, hint=RUN_AGAIN)


def _handle_signals() -> None:
    """SIGTERM, and SIGHUP of a connection that drops, end the run in order: what was begun is cleaned up."""
    ended: list[int] = []

    def end(number: int, _frame: object) -> None:
        if not ended:  # else the cleaning up has begun, and a second one does not stop it
            ended.append(number)
            raise _Ended(signal.Signals(number).name)

    def dropped(unraisable: Any) -> None:
        """Python drops what is raised right after a fork or in a finalizer: the signal comes again in a moment."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        number = ended.pop() if ended else signal.SIGINT
        signal.signal(signal.SIGALRM, lambda _number, _frame: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.unraisablehook = dropped
    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup keeps its meaning
        signal.signal(signal.SIGHUP, end)


def parse_time(text: str) -> datetime:
    """A point in time as a person writes it: RFC 3339, or a date; without a zone it is local time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is not a point in time.",
            hint="For example 2026-11-23, 2026-11-23T14:00 or 2026-11-23T14:00:00Z.",
        ) from None
    return moment.astimezone(UTC)
