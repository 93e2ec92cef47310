"""Amounts for a sentence."""


def spoken_bytes(amount: float) -> str:
    """A number of bytes in its largest unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def counted(number: int, thing: str) -> str:
    """``1 backup``, ``2 backups``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
