"""What may stand in opsctl.toml: a model per section, and the one line that says what is wrong with one."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar

# Whoever imports this module needs the models; the commands import it inside their bodies.
from pydantic import (  # noqa: TID253
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from opsctl.errors import ConfigurationError
from opsctl.schedule import SCHEDULED, Schedule
from opsctl.settings_telemetry import (
    HeartbeatSettings,
    MetricsSettings,
    NotifySettings,
    SentrySettings,
    ServeSettings,
)
from opsctl.settings_types import (
    CommandLine,
    Count,
    Cron,
    Duration,
    HttpUrl,
    Jitter,
    Pattern,
    Percent,
    PostgresUrl,
    Seconds,
    Settings,
    TimeZone,
)

M = TypeVar("M", bound=BaseModel)


class AssertionSettings(Settings):
    """``[[databases.<name>.assertions]]``: a query that drills put to the restored database."""

    sql: Annotated[str, Field(min_length=1)]
    expect: bool | int | float | str = True


class UnusualSettings(Settings):
    """``[databases.<name>.unusual]``: from where on a new backup is less than it should be."""

    compared: Annotated[int, Field(ge=0, le=1000)] = 7
    smaller_percent: Percent = 50
    faster_percent: Percent = 20
    rows_percent: Percent = 50
    smallest_bytes: Count = 1 << 20
    shortest_seconds: Annotated[float, Field(ge=0)] = 60
    fewest_rows: Annotated[int, Field(ge=1)] = 1000
    ignore_tables: tuple[str, ...] = ()


class DatabaseSettings(Settings):
    """``[databases.<name>]``: one PostgreSQL database opsctl looks after."""

    url: PostgresUrl | None = None
    url_env: str | None = None
    direct_url: PostgresUrl | None = None
    replica_urls: tuple[PostgresUrl, ...] = ()
    service: str | None = None
    tools: Literal["host", "service"] = "host"
    all: bool = False
    exclude: tuple[str, ...] = ()
    password_env: str | None = None
    password_file: Path | None = None
    password_command: str | None = None
    maintenance_database: str | None = None
    repositories: tuple[str, ...] | None = None
    facts: Literal["none", "counts", "content"] = "counts"
    compression_level: Annotated[int, Field(ge=1, le=22)] = 3
    compression_threads: Annotated[int, Field(ge=0, le=64)] = 0
    jobs: Annotated[int, Field(ge=1, le=64)] = 1
    lock_timeout_seconds: Annotated[float, Field(gt=0)] = 60
    exclude_tables: tuple[str, ...] = ()
    role_passwords: bool = False
    before_swap: str | None = None
    after_swap: str | None = None
    keep_previous: Duration | None = None
    unusual: UnusualSettings = UnusualSettings()
    assertions: tuple[AssertionSettings, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> "DatabaseSettings":
        if (self.url is None) == (self.url_env is None):
            raise ValueError("needs either url or url_env")
        if self.tools == "service" and self.service is None:
            raise ValueError('tools = "service" needs service, the one the programs are in')
        if sum(each is not None for each in (self.password_env, self.password_file, self.password_command)) > 1:
            raise ValueError("takes one of password_env, password_file and password_command")
        if self.tools == "service" and self.jobs > 1:
            raise ValueError('jobs needs files of this host, which tools = "service" cannot write')
        if self.exclude and not self.all:
            raise ValueError("exclude leaves out databases of all = true; tables are left out with exclude_tables")
        return self


class RetentionSettings(Settings):
    """``retention``: which backups stay. Empty keeps everything."""

    keep_last: Count | None = None
    keep_hourly: Count | None = None
    keep_daily: Count | None = None
    keep_weekly: Count | None = None
    keep_monthly: Count | None = None
    keep_yearly: Count | None = None
    keep_within: Duration | None = None


class RepositorySettings(Settings):
    """``[repositories.<name>]``: where backups live. All but ``url`` and ``retention`` are for ``s3://`` alone."""

    url: str
    retention: RetentionSettings = RetentionSettings()
    endpoint_url: Annotated[str, Field(pattern=r"^https?://[^/@?#]+/?$")] | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    storage_class: str | None = None
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    ca_bundle: Path | None = None
    object_lock: Literal["off", "governance", "compliance"] = "off"
    object_lock_days: Annotated[int, Field(ge=1, le=36500)] | None = None

    @model_validator(mode="after")
    def _fitting_keys(self) -> "RepositorySettings":
        if not self.url.startswith("s3://"):
            irrelevant = [key for key in type(self).model_fields if key in self.model_fields_set - {"url", "retention"}]
            if irrelevant:
                raise ValueError(f"{irrelevant[0]} is for s3:// repositories only")
        if self.kms_key_id is not None and self.server_side_encryption in {None, "AES256"}:
            raise ValueError('kms_key_id needs server_side_encryption = "aws:kms"')
        if self.object_lock_days is not None and self.object_lock == "off":
            raise ValueError('object_lock_days needs object_lock = "governance" or "compliance"')
        return self


class EncryptionSettings(Settings):
    """``[encryption]``: who backups are encrypted to, and where the identity is that opens them."""

    recipients: tuple[str, ...] = ()
    identity_file: Path | None = None
    identity_env: str | None = None
    identity_command: str | None = None

    @model_validator(mode="after")
    def _one_identity(self) -> "EncryptionSettings":
        if sum(each is not None for each in (self.identity_file, self.identity_env, self.identity_command)) > 1:
            raise ValueError("takes one of identity_file, identity_env and identity_command")
        return self


class SigningSettings(Settings):
    """``[signing]``: the key manifests are signed with, and the keys whose signatures count."""

    key_file: Path | None = None
    public_keys: tuple[str, ...] = ()


class HttpSettings(Settings):
    """``[http.<name>]``, ``[services.<name>.http]``: an address that should answer, for the checks."""

    url: HttpUrl
    status: Annotated[int, Field(ge=100, le=599)] = 200
    body: Pattern | None = None
    headers: dict[str, SecretStr] = {}
    ca_bundle: Path | None = None
    timeout_seconds: Seconds = 5


class ServiceSettings(Settings):
    """``[services.<name>]``: a container, found by compose's labels or by its name."""

    compose_project: str | None = None
    compose_service: str | None = None
    compose_file: Path | None = None
    container: str | None = None
    stop_timeout_seconds: Annotated[int, Field(ge=0)] | None = None
    ready_timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    stable_seconds: Annotated[float, Field(gt=0)] = 5
    restart_budget: Annotated[int, Field(ge=1)] = 3
    restart_budget_minutes: Annotated[float, Field(gt=0)] = 30
    http: HttpSettings | None = None

    @model_validator(mode="after")
    def _one_way_to_find_it(self) -> "ServiceSettings":
        if self.container is not None and (self.compose_project or self.compose_service):
            raise ValueError("is found by container, or by compose_project and compose_service, not by both")
        return self


class StateSettings(Settings):
    """``[state]``: where opsctl keeps locks and temporary files on this host."""

    path: Path | None = None
    staging_path: Path | None = None


class ThresholdSettings(Settings):
    """``[doctor.thresholds."<check>"]``: from where on a check's value is a warning, and critical."""

    warn: float | None = None
    crit: float | None = None


class DoctorSettings(Settings):
    """``[doctor]``: which checks run, and how they judge."""

    disabled: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    thresholds: dict[str, ThresholdSettings] = {}


class RunbookSettings(Settings):
    """``[runbook]``: the runbook, and how often a step of it may change something."""

    path: Path | None = None
    language: Literal["en", "ru"] = "en"
    budget: Annotated[int, Field(ge=1)] = 3
    budget_minutes: Annotated[float, Field(gt=0)] = 30


class ScheduleSettings(Settings):
    """``[schedule]``: what should run when, as five cron fields; doctor compares it with what did."""

    timezone: TimeZone = "UTC"
    jitter: Jitter = 0
    backup: Cron | None = None
    drill: Cron | None = None
    doctor: Cron | None = None
    sync: Cron | None = None
    prune: Cron | None = None

    def of(self, command: str) -> Schedule | None:
        """When a command should run, if that is configured."""
        expression = getattr(self, command) if command in SCHEDULED else None
        return Schedule(expression, self.timezone) if expression else None


class DrillSettings(Settings):
    """``[drill]``: where backups are restored to be proven, and what that may take."""

    scratch_url: PostgresUrl | None = None
    folder: Path | None = None
    max_disk_bytes: Annotated[int, Field(gt=0)] | None = None
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    allow_superuser: bool = False
    image: Annotated[str, Field(pattern=r"^[a-z0-9][^\s{}]*(\{major\})?[^\s{}]*$")] = "postgres:{major}"
    pull: bool = False
    timeout_seconds: Annotated[float, Field(gt=0)] = 21_600


class TlsSettings(Settings):
    """``[tls.<name>]``: a server whose certificate should be good, for the checks."""

    address: Annotated[str, Field(pattern=r"^([^\s/@:\[\]]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$")]
    server_name: str | None = None
    ca_bundle: Path | None = None
    timeout_seconds: Seconds = 5


class OwnCheckSettings(Settings):
    """``[[checks]]``: a check of the user's own."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    kind: Literal["sql", "http", "command", "file"]
    title: str | None = None
    sql: str | None = None
    database: str | None = None
    url: HttpUrl | None = None
    status: Annotated[int, Field(ge=100, le=599)] = 200
    command: CommandLine | None = None
    path: Path | None = None
    measure: Literal["age", "size"] = "age"
    expect: Pattern | None = None
    warn: float | None = None
    crit: float | None = None
    unit: Literal["s", "%", "B"] | None = None
    fix: str | None = None
    timeout_seconds: Seconds = 5

    @model_validator(mode="after")
    def _fitting_keys(self) -> "OwnCheckSettings":
        subjects = {"sql": ("sql",), "http": ("url",), "command": ("command",), "file": ("path",)}
        more = {"sql": ("database",), "http": ("status",), "file": ("measure",)}
        for kind, keys in subjects.items():
            if kind == self.kind and not getattr(self, keys[0]):
                raise ValueError(f'kind = "{kind}" needs {keys[0]}')
            strangers = self.model_fields_set & {*keys, *more.get(kind, ())}
            if kind != self.kind and strangers:
                raise ValueError(f'{min(strangers)} is for kind = "{kind}" only')
        if self.kind == "file" and self.expect is not None:
            raise ValueError("expect is not for files: their age or size is judged")
        return self


class FileSettings(Settings):
    """The whole of opsctl.toml."""

    databases: dict[str, DatabaseSettings] = {}
    repositories: dict[str, RepositorySettings] = {}
    services: dict[str, ServiceSettings] = {}
    schedule: ScheduleSettings = ScheduleSettings()
    doctor: DoctorSettings = DoctorSettings()
    runbook: RunbookSettings = RunbookSettings()
    drill: DrillSettings = DrillSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    signing: SigningSettings = SigningSettings()
    http: dict[str, HttpSettings] = {}
    tls: dict[str, TlsSettings] = {}
    checks: tuple[OwnCheckSettings, ...] = ()
    sentry: SentrySettings = SentrySettings()
    metrics: MetricsSettings = MetricsSettings()
    heartbeats: HeartbeatSettings = HeartbeatSettings()
    notify: NotifySettings = NotifySettings()
    serve: ServeSettings = ServeSettings()
    state: StateSettings = StateSettings()


def validated(model: type[M], data: Mapping[str, Any], *, where: str) -> M:
    """``data`` as a model. Raises ConfigurationError that names ``where`` and the key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explained(error, model, where=where) from None


def explained(error: ValidationError, model: type[BaseModel], *, where: str) -> ConfigurationError:
    """The first problem as one line that names file and key, never the value: it may be a secret. With the others."""
    first, *others = (
        _explained(each["type"], [str(part) for part in each["loc"]], each["msg"], model, where)
        for each in error.errors(include_input=False, include_url=False)
    )
    return ConfigurationError(first.message, hint=first.hint, others=others)


def _explained(kind: str, location: list[str], text: str, model: type[BaseModel], where: str) -> ConfigurationError:
    message, hint = text.removeprefix("Value error, "), "docs/configuration.md describes every key."
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        message = "is not a key opsctl knows"
        hint = nearest(location[-1], known) or f"Known there: {', '.join(sorted(known))}."
    return ConfigurationError(f"{where}: {'.'.join(location)}: {message}.", hint=hint)


def _known_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys a model knows at ``location``; names of databases and repositories are the user's own."""
    current: Any = model
    for part in location:
        if isinstance(current, UnionType):  # Model | None
            current = _model_in(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:  # dict[str, Model], tuple[Model, ...]
            current = _model_in(current)
    return list(_model_in(current).model_fields)


def _model_in(annotation: Any) -> Any:
    """The model in ``Model``, ``dict[str, Model]``, ``tuple[Model, ...]`` or ``Model | None``."""
    found = (each for each in getattr(annotation, "__args__", ()) if hasattr(each, "model_fields"))
    return annotation if hasattr(annotation, "model_fields") else next(found)


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str | None:
    """A hint with the known word that ``word`` was probably meant to be."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {matches[0]!r}?" if matches else None
