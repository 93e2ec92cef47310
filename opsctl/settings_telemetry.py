"""What may stand in opsctl.toml about who hears of a run: a model per section."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator  # noqa: TID253  # as in settings.py

from opsctl.settings_types import Settings


def _pushgateway_url(url: SecretStr) -> SecretStr:
    if not re.fullmatch(r"https?://([^/@?#\s:]+:[^/@?#\s]*@)?[^/@?#\s]+(/[^?#\s]*)?", url.get_secret_value()):
        raise ValueError("must be http://host:9091, or https://user:password@host; no more than a path may follow")
    return url


def _prom_file(path: Path) -> Path:
    if path.suffix != ".prom":
        raise ValueError("must end in .prom: node_exporter reads no other file")
    return path


def _heartbeat_url(url: SecretStr) -> SecretStr:
    if not re.fullmatch(r"https?://[^/?#\s]+([/?][^\s#]*)?", url.get_secret_value()):
        raise ValueError("must be an address like https://hc-ping.com/UUID")
    return url


def _notify_url(url: SecretStr) -> SecretStr:
    if not re.match(r"[A-Za-z0-9]+://\S", url.get_secret_value()):
        raise ValueError("must be an Apprise URL like tgram://TOKEN/CHAT")
    return url


HeartbeatUrl = Annotated[SecretStr, AfterValidator(_heartbeat_url)]
NotifyUrl = Annotated[SecretStr, AfterValidator(_notify_url)]


class SentrySettings(Settings):
    """``[sentry]``: where failures are reported; ``SENTRY_DSN`` alone is enough."""

    dsn: SecretStr | None = None
    dsn_env: str = "SENTRY_DSN"
    environment: str | None = None
    traces_sample_rate: Annotated[float, Field(ge=0, le=1)] = 0
    monitor_prefix: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")] = "opsctl"
    checkin_margin_minutes: Annotated[int, Field(ge=1, le=1440)] = 10
    max_runtime_minutes: Annotated[int, Field(ge=1, le=40320)] = 360


class HeartbeatSettings(Settings):
    """``[heartbeats]``: addresses that are told when a scheduled command begins and how it ends."""

    backup: HeartbeatUrl | None = None
    drill: HeartbeatUrl | None = None
    doctor: HeartbeatUrl | None = None
    verify: HeartbeatUrl | None = None
    prune: HeartbeatUrl | None = None
    sync: HeartbeatUrl | None = None


class NotifySettings(Settings):
    """``[notify]``: who is told of what, through Apprise."""

    urls: tuple[NotifyUrl, ...] = ()
    urls_env: str = "OPSCTL_NOTIFY_URLS"
    on: tuple[Literal["failure", "recovery", "drill", "doctor"], ...] = ("failure", "recovery", "drill", "doctor")
    repeat_hours: Annotated[float, Field(gt=0)] = 24


class MetricsSettings(Settings):
    """``[metrics]``: where metrics go at the end of every run."""

    textfile: Annotated[Path, AfterValidator(_prom_file)] | None = None
    pushgateway_url: Annotated[SecretStr, AfterValidator(_pushgateway_url)] | None = None


class ServeSettings(Settings):
    """``[serve]``: the status page: where it listens, who may see it, how often the repositories are asked."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9778
    allowed_hosts: tuple[str, ...] = ()
    token_env: str | None = None
    token_file: Path | None = None
    refresh_seconds: Annotated[float, Field(ge=10)] = 300

    @model_validator(mode="after")
    def _one_token(self) -> "ServeSettings":
        if self.token_env is not None and self.token_file is not None:
            raise ValueError("has token_env and token_file; keep one of them")
        return self
