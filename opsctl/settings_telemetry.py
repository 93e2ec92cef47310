"""What may stand in opsctl.toml about who hears of a run: a model per section."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr  # noqa: TID253  # as in settings.py

from opsctl.settings_types import Settings


def _pushgateway_url(url: SecretStr) -> SecretStr:
    if not re.fullmatch(r"https?://([^/@?#\s:]+:[^/@?#\s]*@)?[^/@?#\s]+(/[^?#\s]*)?", url.get_secret_value()):
        raise ValueError("must be http://host:9091, or https://user:password@host; no more than a path may follow")
    return url


def _prom_file(path: Path) -> Path:
    if path.suffix != ".prom":
        raise ValueError("must end in .prom: node_exporter reads no other file")
    return path


class SentrySettings(Settings):
    """``[sentry]``: where failures are reported; ``SENTRY_DSN`` alone is enough."""

    dsn: SecretStr | None = None
    dsn_env: str = "SENTRY_DSN"
    environment: str | None = None


class MetricsSettings(Settings):
    """``[metrics]``: where metrics go at the end of every run."""

    textfile: Annotated[Path, AfterValidator(_prom_file)] | None = None
    pushgateway_url: Annotated[SecretStr, AfterValidator(_pushgateway_url)] | None = None
