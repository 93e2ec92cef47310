"""What a command works with: everything a run may need, opened when it is first asked for."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsctl.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    OpsctlError,
    Refused,
    ServiceFailed,
    ServicesUnreachable,
    UsageError,
)

if TYPE_CHECKING:
    from opsctl.cli.announce import Announcer
    from opsctl.cli.output import Output, Run
    from opsctl.config import Config
    from opsctl.encryption import Identities, Recipients
    from opsctl.history import CheckChange, History
    from opsctl.incident import Incidents
    from opsctl.keys import Keys
    from opsctl.postgres.server import Server
    from opsctl.postgres.tools import Tools
    from opsctl.repository import Repository
    from opsctl.restore import SwapSettings
    from opsctl.retention import Policy
    from opsctl.services import Service, ServiceRuntime
    from opsctl.services.docker import Docker
    from opsctl.services.names import Services
    from opsctl.signing import SigningKey


@dataclass(frozen=True)
class Options:
    config: Path | None = None
    json: bool = False
    quiet: bool = False
    debug: bool = False
    log_file: Path | None = None


class Session:
    """What a command works with; everything is opened when it is first asked for."""

    def __init__(
        self,
        command: str,
        options: Options,
        *,
        within: "Session | None" = None,
        is_confirmed: Callable[[str], bool] | None = None,
    ) -> None:
        """``within`` is the run this one is a step of; ``is_confirmed`` tells what a person has confirmed there."""
        from opsctl.cli.output import JsonOutput, TextOutput
        from opsctl.telemetry.recent import Recent
        from opsctl.telemetry.redact import Redactor

        self.command = command
        self.options = options
        self._within = within
        self._is_confirmed = is_confirmed
        self.run_id = os.urandom(8).hex()
        self.started_at = self.clock()
        self.redactor: Redactor = within.redactor if within else Redactor()
        self.check_changes: Sequence[CheckChange] = ()
        """Which checks have another status than the last time, once doctor has looked."""
        self.is_event = False
        """Whether it does something, so that the history and the metrics tell of it."""
        self.concerned: tuple[str, ...] = ()
        """The databases this run is about, once that is known."""
        self.is_recorded = False
        self.is_warned = False
        self.unwritten: list[Callable[[History], Any]] = []
        """What the history could not be told yet, see run_report."""
        self.recent = Recent()
        self.phases: list[tuple[str, datetime]] = []
        self.output: Output = (
            JsonOutput(self.redactor) if options.json else TextOutput(self.redactor, quiet=options.quiet)
        )

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def run(self) -> "Run":
        """The run, if it ends now."""
        from opsctl.cli.output import Run

        return Run(self.command, self.run_id, self.started_at, self.clock())

    @cached_property
    def config(self) -> "Config":
        """The configuration; from here on the redactor knows its secrets."""
        from opsctl.config import require_consistent

        if self._within is not None and self.options.config is None:
            return self._within.config
        require_consistent(self.config_as_written)
        return self.config_as_written

    @cached_property
    def config_as_written(self) -> "Config":
        """The same, even where it contradicts itself: for those who look for what is wrong with it."""
        from opsctl.config import read_config

        config = read_config(self.options.config)
        names = {*config.databases, *config.repositories, *config.services, "postgres", "opsctl"}
        self.redactor.except_for(names)
        self.redactor.add(config.secrets())
        self.configure_logs(config)
        return config

    def configure_logs(self, config: "Config | None" = None) -> None:
        """Set the logs up: as the environment wants it at first, then with what the configuration knows of it."""
        from opsctl.config import log_variables
        from opsctl.telemetry.logs import bind_run, configure_logs, log_style

        variables = config.variables if config else log_variables()
        style = log_style(variables, sys.stderr, environment=config.sentry_environment if config else None)
        named = self.options.log_file or variables.get("OPSCTL_LOG_FILE")
        configure_logs(
            style=style,
            quiet=self.options.quiet,
            debug=self.options.debug,
            redactor=self.redactor,
            recent=self.recent,
            stream=sys.stderr,
            path=Path(named).expanduser() if named else None,
        )
        bind_run(**style.context, run_id=self.run_id, command=self.command)
        if config is not None and style.problem:
            self.log().warning("log.context", message=f"OPSCTL_LOG_CONTEXT: {style.problem}")

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

    @cached_property
    def history(self) -> "History":
        """The record of this host's runs."""
        from opsctl.history import FILE, History

        try:
            path = self.config.state_path
        except OpsctlError:  # a configuration that cannot be read stops every backup: that belongs on the record, too
            from opsctl.config_file import environment_state_path

            path = environment_state_path()
        return History(path / FILE, redact=self.redactor.deep)

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
        from opsctl.config import checked_url
        from opsctl.known_secrets import url_secrets
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
        from opsctl.manifest_cache import ManifestCache
        from opsctl.repository import Repository
        from opsctl.retention import lock_span
        from opsctl.storage import open_storage

        repositories = {}
        cache = ManifestCache(self.config.state_path)
        for name in self.config.repositories:
            settings = self.config.repository(name)
            storage = open_storage(settings.url, settings)
            self.redactor.add(storage.secrets())
            where = f"{self.config.source}: repositories.{name}.object_lock"
            repositories[name] = Repository(name, storage, lock_span(settings, self.policies[name], where=where), cache)
        return repositories

    @property
    def opened_repositories(self) -> "list[Repository]":
        """The repositories, if this run has had to do with them."""
        opened: dict[str, Repository] = vars(self).get("repositories", {})
        return list(opened.values())

    def repository(self, name: str) -> "Repository":
        """One of them. Raises ConfigurationError that names the nearest."""
        from opsctl.settings import nearest

        if name not in self.repositories:
            hint = nearest(name, self.repositories) or f"Configured: {', '.join(self.repositories)}."
            raise ConfigurationError(f"There is no repository {name!r}.", hint=hint)
        return self.repositories[name]

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
        from opsctl.retention import policy_of

        return {name: policy_of(settings.retention) for name, settings in self.config.repositories.items()}

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
    def docker(self) -> "Docker":
        from opsctl.services.docker import Docker

        return Docker(self.config.variables)

    @property
    def runtime(self) -> "ServiceRuntime":
        """What runs the services."""
        return self.docker

    @cached_property
    def services(self) -> "Services":
        """The services by their names; what is secret in their containers is known from then on."""
        from opsctl.services.names import Services

        return Services(self.runtime, self.config.services, learn_secrets=self.redactor.add)

    @cached_property
    def incidents(self) -> "Incidents":
        """The incidents of this host; every line of theirs says who is at work here."""
        from opsctl.incident import Incidents

        actor = {**self.config.actor, "run_id": self.run_id}
        return Incidents(self.config.state_path / "incidents", self.redactor, self.clock, actor)

    def stream_lines(self) -> None:
        """From here on the result is printed line by line; with ``--json`` as JSON lines."""
        from opsctl.cli.output import JsonLinesOutput

        if self.options.json:
            self.output = JsonLinesOutput(self.redactor)

    def progress(self, label: str, total: int | None) -> Callable[[int], None]:
        """A new phase of the run: it is shown, and becomes part of the trace."""
        self.phases.append((label, self.clock()))
        return self.output.start_progress(label, total)

    @cached_property
    def announcer(self) -> "Announcer":
        """Who else hears of this run."""
        from opsctl.cli.announce import Announcer

        return Announcer(self)

    @property
    def is_attended(self) -> bool:
        """Whether a person may be watching: cron, systemd and ssh with a command give a run no terminal."""
        streams = (stream for stream in (sys.stdin, sys.stderr) if stream is not None and not stream.closed)
        return any(stream.isatty() for stream in streams)

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
        if yes is None and self._is_confirmed is not None:
            if self._is_confirmed(name):
                return
            raise Refused(
                f"{doing.capitalize()} concerns {name!r}, which is not what was confirmed.",
                hint="Correct the target= of the runbook's step.",
            )
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


SINCE = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_since(text: str, now: datetime) -> datetime:
    """A point in time, or how long ago it is: ``2h30m``, ``7d``."""
    match = SINCE.fullmatch(text)
    if match is None or not text:
        return parse_time(text)
    days, hours, minutes, seconds = (int(each or 0) for each in match.groups())
    return now - timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
