"""What may stand in opsctl.toml about who hears of a run: a model per section."""

from pydantic import SecretStr  # noqa: TID253  # as in settings.py

from opsctl.settings_types import Settings


class SentrySettings(Settings):
    """``[sentry]``: where failures are reported; ``SENTRY_DSN`` alone is enough."""

    dsn: SecretStr | None = None
    dsn_env: str = "SENTRY_DSN"
    environment: str | None = None
