"""The chart of a database's backups: sizes as bars, durations as a line below, failed runs as marks. Pure geometry.

It is drawn in percent and stretched to the page's width, so its words stand beside it, as text of the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median

from opsctl.history import Run
from opsctl.web.status import Backup

WIDTH = 1000.0
"""Units from the first to the last moment; heights are 100 each."""

HEADROOM = 0.94


@dataclass(frozen=True)
class Bar:
    """One backup: where it stands, how high it is, and how long it took."""

    x: float
    width: float
    height: float
    duration_y: float
    kind: str
    """``restored``: restored once; ``checked``: read back; ``stored``: nothing proven; ``damaged``."""
    backup: Backup


@dataclass(frozen=True)
class Mark:
    x: float
    run: Run


@dataclass(frozen=True)
class Chart:
    begins_at: datetime
    ends_at: datetime
    largest_bytes: int
    longest_seconds: float
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    line: str
    """The durations as points of a polyline."""

    @property
    def bar_kinds(self) -> set[str]:
        return {bar.kind for bar in self.bars}


def chart_of(backups: Sequence[Backup], failures: Sequence[Run], now: datetime) -> Chart | None:
    """The chart of backups given newest first; ``None`` with too few to see anything."""
    shown = [each for each in reversed(backups) if each.created_at <= now]
    if len(shown) < 2:
        return None
    begins_at = shown[0].created_at
    ends_at = max(now, shown[-1].created_at)
    span = max((ends_at - begins_at).total_seconds(), 1.0)
    gaps = [(later.created_at - earlier.created_at).total_seconds() for earlier, later in pairwise(shown)]
    width = min(max(median(gaps) / span * WIDTH * 0.7, 2.0), WIDTH / 12)
    largest = max(each.stored_bytes for each in shown) or 1
    longest = max(each.duration_seconds for each in shown) or 1.0

    def x_of(moment: datetime) -> float:
        return round((moment - begins_at).total_seconds() / span * (WIDTH - width), 1)

    bars = tuple(
        Bar(
            x=x_of(each.created_at),
            width=round(width, 1),
            height=round(max(each.stored_bytes / largest * 100 * HEADROOM, 1.0), 1),
            duration_y=round(100 - max(each.duration_seconds / longest, 0.0) * 100 * HEADROOM, 1),
            kind=_kind(each),
            backup=each,
        )
        for each in shown
    )
    marks = tuple(Mark(x_of(run.started_at), run) for run in failures if begins_at <= run.started_at <= ends_at)
    line = " ".join(f"{bar.x + width / 2:.1f},{bar.duration_y}" for bar in bars)
    return Chart(begins_at, ends_at, largest, longest, bars, marks, line)


def _kind(backup: Backup) -> str:
    if backup.is_damaged:
        return "damaged"
    if backup.is_restorable:
        return "restored"
    return "checked" if backup.level else "stored"
