"""How often a service may be restarted: what a restart does not cure, ten more do not cure either."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from opsctl.errors import Refused
from opsctl.times import format_time


@dataclass(frozen=True)
class RestartBudget:
    """At most ``limit`` restarts of a service within ``window``, remembered in a file of the state folder.

    ``done`` and ``again`` are the words for what else is limited so: a step of a runbook.
    """

    path: Path
    limit: int
    window: timedelta
    done: str = "restarted"
    again: str = "restart"
    allowance: str = "restart_budget"

    def check(self, service: str, now: datetime) -> None:
        """Raises Refused when the budget is spent."""
        with self._opened() as file:
            self._require(self._recent(_read(file), service, now), service)

    def spend(self, service: str, now: datetime) -> None:
        """Count a restart that is about to happen. Raises Refused when the budget is spent."""
        with self._opened() as file:
            spent = _read(file)
            recent = self._recent(spent, service, now)
            self._require(recent, service)
            spent[service] = [*(format_time(each) for each in recent), format_time(now)]
            file.seek(0)
            file.truncate()
            json.dump(spent, file)

    def _recent(self, spent: dict[str, list[str]], service: str, now: datetime) -> list[datetime]:
        """What counts: a clock that was set back must not give restarts away, so the future counts too."""
        times = [datetime.fromisoformat(each) for each in spent.get(service, [])]
        return [each for each in times if each > now - self.window]

    def _require(self, recent: list[datetime], service: str) -> None:
        if len(recent) < self.limit:
            return
        minutes = self.window.total_seconds() / 60
        free_at = format_time(min(recent) + self.window)
        raise Refused(
            f"{service} was {self.done} {len(recent)} times in the last {minutes:g} minutes; another {self.again} will"
            " not help.",
            hint=f"Look at its logs first. The next {self.again} is allowed at {free_at};"
            f" {self.allowance} allows more.",
        )

    @contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _read(file: IO[str]) -> dict[str, list[str]]:
    """What was spent; a file cut short by a full disk counts as none: it must not stop an urgent restart."""
    try:
        found = json.load(file)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
