"""The backups as the repositories last told them, asked again and again in the background.

Each repository is asked by a process of its own, ``opsctl list --json --repository NAME``: one that hangs is killed
after a while and delays neither a request nor another repository, and ten thousand manifests are read elsewhere.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from signal import SIGTERM
from typing import Any

from opsctl.postgres.processes import die_with_parent

PATIENCE_SECONDS = 60.0
"""How long a repository may take to list its backups: 10,000 of them in a bucket are some seconds."""

LOOK_SECONDS = 2.0
"""How often the history is asked whether a run has changed the repositories meanwhile."""

CLEANING_UP_SECONDS = 3.0


@dataclass(frozen=True)
class Problem:
    """Why a repository could not be listed."""

    message: str
    hint: str | None


@dataclass(frozen=True)
class Listed:
    """One repository: the ``result`` of its last good answer and when that was; what went wrong since, if it did."""

    repository: str
    result: Mapping[str, Any] | None = None
    answered_at: datetime | None = None
    problem: Problem | None = None


class Catalog:
    """What all repositories told last. ``changed`` gives another value whenever a run may have changed them."""

    def __init__(
        self,
        repositories: Sequence[str],
        *,
        arguments: Sequence[str],
        clock: Callable[[], datetime],
        refresh_seconds: float,
        changed: Callable[[], object] = lambda: None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._arguments = list(arguments)
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._changed = changed
        self._patience_seconds = patience_seconds
        self._listed = {name: Listed(name) for name in repositories}
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._keep_asking, args=[name], daemon=True) for name in repositories]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End what is under way; nothing is left running."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=2 * CLEANING_UP_SECONDS)

    def listed(self) -> list[Listed]:
        """Every repository, in the configuration's order."""
        return list(self._listed.values())

    def _keep_asking(self, name: str) -> None:
        while not self._stopping.is_set():
            seen = self._marker()
            self._listed[name] = self._asked(self._listed[name])
            waited = 0.0
            while waited < self._refresh_seconds and (waited < LOOK_SECONDS or self._marker() == seen):
                if self._stopping.wait(LOOK_SECONDS):
                    return
                waited += LOOK_SECONDS

    def _marker(self) -> object:
        try:
            return self._changed()
        except Exception:  # noqa: BLE001 - a history that cannot be read does not end the thread; the page says so
            return None

    def _asked(self, before: Listed) -> Listed:
        """The repository after it was asked once more; without an answer, as it was before."""
        asked_at = self._clock()
        try:
            answer = self._answer(before.repository)
            if answer is None:
                text = f"It was not listed within {self._patience_seconds:g} seconds."
                hint = f"`opsctl list --repository {before.repository}` shows where it hangs."
                return replace(before, problem=Problem(text, hint))
            document = json.loads(answer)
            error = document["error"]
            if error is not None:
                return replace(before, problem=Problem(error["message"], error["hint"]))
            return Listed(before.repository, document["result"], asked_at)
        except (OSError, ValueError, KeyError, TypeError):
            hint = f"`opsctl list --repository {before.repository} --json` shows what it says."
            return replace(before, problem=Problem("opsctl could not be asked for its backups.", hint))

    def _answer(self, name: str) -> bytes | None:
        """What ``opsctl list`` prints; ``None`` when it takes too long, or when we are to end."""
        words = [sys.executable, "-m", "opsctl", "list", "--json", "--repository", name, *self._arguments]
        dies = die_with_parent(SIGTERM)

        def in_child() -> None:
            os.nice(10)
            dies()

        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=in_child,  # noqa: PLW1509 - two C calls
        )
        waited = 0.0
        try:
            while not self._stopping.is_set() and waited < self._patience_seconds:
                with suppress(subprocess.TimeoutExpired):
                    return process.communicate(timeout=0.5)[0]
                waited += 0.5
        finally:
            if process.poll() is None:
                _end(process)
        return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.communicate(timeout=CLEANING_UP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
