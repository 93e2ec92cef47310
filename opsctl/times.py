"""Times as programs read them. Pure."""

from datetime import UTC, datetime


def format_time(moment: datetime) -> str:
    """An aware time as RFC 3339 in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
