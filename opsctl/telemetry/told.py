"""What people were told already: the same trouble is told once, again after a while, and its end.

A trouble counts as told only once a message about it has arrived somewhere.
"""

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from opsctl.times import format_time


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong. ``key`` names what it is about, ``cause`` what is wrong with it.

    ``subject`` is both in words: ``backup of saasdb failed``.
    """

    key: str
    cause: str
    subject: str
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class Known:
    """A trouble as it is remembered. ``told`` is the cause people know of; None until somebody was told."""

    cause: str
    subject: str
    since: str
    told: str | None = None
    told_at: str | None = None


@dataclass(frozen=True)
class News:
    """What is to be told: new troubles, those told too long ago (with the time since when), and what is over."""

    new: tuple[Trouble, ...] = ()
    again: tuple[tuple[Trouble, datetime], ...] = ()
    over: tuple[Known, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.again or self.over)


def news(
    known: Mapping[str, Known],
    troubles: Sequence[Trouble],
    well: Collection[str],
    *,
    now: datetime,
    repeat_after: timedelta,
) -> News:
    """``well`` are the keys of what is all right; what is neither there nor a trouble was not looked at."""
    new, again = [], []
    for trouble in troubles:
        before = known.get(trouble.key)
        if before is None or before.told_at is None or before.told != trouble.cause:
            new.append(trouble)
        elif now - datetime.fromisoformat(before.told_at) >= repeat_after:
            again.append((trouble, datetime.fromisoformat(before.since)))
    over = tuple(before for key, before in known.items() if key in well and before.told is not None)
    return News(tuple(new), tuple(again), over)


def remembered(
    known: Mapping[str, Known], troubles: Sequence[Trouble], well: Collection[str], told: News, *, now: datetime
) -> dict[str, Known]:
    """What is known after a run that looked at ``troubles`` and ``well`` and of which ``told`` has arrived."""
    at = format_time(now)
    after = {key: each for key, each in known.items() if key not in well or (each.told and each not in told.over)}
    arrived = {trouble.key for trouble in (*told.new, *(trouble for trouble, _ in told.again))}
    for trouble in troubles:
        before = known.get(trouble.key) or Known("", "", at)
        since = before.since if before.cause == trouble.cause else at
        entry = replace(before, cause=trouble.cause, subject=trouble.subject, since=since)
        after[trouble.key] = replace(entry, told=trouble.cause, told_at=at) if trouble.key in arrived else entry
    return after


class Memory:
    """What is known, in a file, across runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Known]:
        """Nothing where nothing can be read: then it is told once too often."""
        try:
            return {key: Known(**each) for key, each in json.loads(self._path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def remember(self, troubles: Sequence[Trouble], well: Collection[str], told: News, *, now: datetime) -> None:
        """Add a run to what is known by now: another may have ended meanwhile. Raises OSError."""
        if not troubles and not self._path.exists():
            return
        with self._alone():
            known = self.read()
            after = remembered(known, troubles, well, told, now=now)
            if after != known:
                partial = self._path.with_suffix(".new")
                partial.write_text(json.dumps({key: asdict(each) for key, each in after.items()}), encoding="utf-8")
                partial.replace(self._path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
