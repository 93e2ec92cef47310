"""What a run of a scenario works with: what it is given, what it asks, what it tells while it goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from opsctl.checks.check import CheckResult
from opsctl.runbook import Command, Step
from opsctl.runbook.programs import Done
from opsctl.services.budget import RestartBudget

Answer = Literal["run", "named", "skip", "stop", "refused"]
"""``named``: to be run, because --confirm names it. ``refused``: it does not, and there is nobody to ask."""


@dataclass(frozen=True)
class Question:
    """What is asked before a step that changes something, with all there is to know about it."""

    step: Step
    commands: tuple[Command, ...]
    """With the parameters' values in their places."""
    target: str | None = None
    """The name to be typed; ``None`` where y is enough."""
    facts: tuple[str, ...] = ()
    is_undo: bool = False


@dataclass(frozen=True)
class Progress:
    """Something a person who watches wants to see at once."""

    kind: Literal["begins", "output", "ends", "skipped", "waits", "green", "not_green", "safeguard", "blocked"]
    step: Step
    text: str = ""
    results: tuple[CheckResult, ...] = ()


class RunOpsctl(Protocol):
    """Run an opsctl command in this process. ``confirmed`` is the name a person typed; ``""`` where y was enough.

    What it prints is shown at once unless it ``is_preview``: then it is part of what is asked.
    """

    def __call__(
        self,
        words: Sequence[str],
        *,
        timeout_seconds: float | None,
        confirmed: str | None = None,
        is_preview: bool = False,
    ) -> Done: ...


class RunProgram(Protocol):
    def __call__(self, words: Sequence[str], *, timeout_seconds: float | None, show: Callable[[str], None]) -> Done: ...


@dataclass(frozen=True)
class Means:
    """What a run works with; the command line puts them together."""

    run_opsctl: RunOpsctl
    run_program: RunProgram
    look: Callable[[Sequence[str]], Sequence[CheckResult]]
    """Make the checks these words name."""
    ask: Callable[[Question], Answer]
    tell: Callable[[Progress], None]
    record: Callable[..., Any]
    """Append to the incident's timeline: on disk before it returns."""
    capture: Callable[[], Any]
    """Save how everything is, before the first change."""
    look_at_all: Callable[[], Any]
    """Record how everything is, after the last."""
    databases: Sequence[str]
    parameters: Mapping[str, str]
    budget: RestartBudget
    clock: Callable[[], datetime]
