"""Amounts for a sentence."""

from opsctl.amounts import counted

__all__ = ["counted", "spoken_bytes"]


def spoken_bytes(amount: float) -> str:
    """A number of bytes in its largest unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
