"""Amounts for people: bytes, ages and durations in their largest unit, numbers of things. Pure."""

from datetime import datetime


def size(count: int | None) -> str:
    """Bytes for people, in binary units."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError  # the loop always returns


def age(moment: datetime, now: datetime) -> str:
    """How long ago; for a column that says so, or before "ago"."""
    seconds = (now - moment).total_seconds()
    if seconds < 0:
        return "future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def counted(number: int, thing: str) -> str:
    """``1 backup``, ``2 backups``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
