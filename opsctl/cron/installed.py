"""What is installed against what should be, and whether the runs that were expected began."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import ndiff
from pathlib import Path
from typing import Literal, Protocol

from opsctl.cron.jobs import EARLY, Job
from opsctl.cron.sign_of_life import seen
from opsctl.errors import Refused
from opsctl.history import Run

PlaceState = Literal["installed", "outdated", "edited", "missing"]
JobState = Literal["ok", "pending", "missed", "overlapping"]

RUNS_LOOKED_AT = 20
"""How many of a command's runs are looked at: the last expected one is among them."""

LOCKED = "locked"
"""The word of a run that met another one."""


@dataclass(frozen=True)
class Standing:
    """How a configuration stands in one place. ``differences``: what is there (-) and what should be (+)."""

    place: str
    state: PlaceState
    installed_at: datetime | None = None
    differences: tuple[str, ...] = ()


def of_scheduler(folder: Path, source: str) -> Standing | None:
    """The run-scheduled that lives with a state folder, if it is this configuration's."""
    sign = seen(folder)
    if sign is None or not sign.is_alive or sign.source != source:
        return None
    return Standing(f"run-scheduled (pid {sign.pid})", "installed", sign.started_at)


class Place(Protocol):
    """Where something is told to run the jobs of a configuration. Raises ConfigurationError where it cannot be."""

    @property
    def name(self) -> str: ...

    def user(self) -> str | None:
        """Whom the jobs run as, where what is installed says so."""
        ...

    def look(self) -> Standing: ...

    def install(self, *, now: datetime, discard_edits: bool) -> bool:
        """Put there what should be there; whether anything changed. Raises Refused rather than lose an edit."""
        ...

    def remove(self, *, discard_edits: bool) -> bool:
        """Take away what is opsctl's; whether there was anything. Raises Refused rather than lose an edit."""
        ...


def differences(there: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The lines that differ, as a patch has them."""
    return tuple(line for line in ndiff(there, wanted) if line[:2] in {"- ", "+ "})


def refuse_edits(standing: Standing) -> None:
    """Raises Refused when somebody has changed what opsctl wrote."""
    if standing.state == "edited":
        shown = "; ".join(standing.differences[:4])
        raise Refused(
            f"Somebody has edited what opsctl wrote into {standing.place}: {shown}.",
            hint="Take the edit over into [schedule], or lose it: --discard-edits.",
        )


@dataclass(frozen=True)
class JobReport:
    job: Job
    state: JobState
    message: str
    expected_at: datetime | None
    next_at: datetime | None
    last: Run | None


def judge_job(job: Job, runs: Sequence[Run], *, since: datetime | None, now: datetime) -> JobReport:
    """Whether the last expected run of a job has begun. ``runs`` are the command's, newest first.

    What was due before ``since``, the time of the installation, is nobody's fault.
    """
    expected, following = job.expected_at(now), job.schedule.next_run(now)
    last = runs[0] if runs else None

    def report(state: JobState, message: str) -> JobReport:
        return JobReport(job, state, message, expected, following, last)

    if expected is None or (since is not None and expected < since):
        return report("pending", "no run was expected yet")
    begun = [run for run in runs if run.started_at >= expected - EARLY]
    still = next((run for run in runs if run.outcome == "running" and run.started_at < expected - EARLY), None)
    if not begun and still is not None:
        return report("overlapping", f"the run of {still.started_at:%Y-%m-%d %H:%M} UTC still goes on")
    if not begun:
        return report("missed", f"the run of {expected:%Y-%m-%d %H:%M} UTC did not begin")
    if begun[0].error_code == LOCKED:
        return report("overlapping", f"the run of {begun[0].started_at:%Y-%m-%d %H:%M} UTC met another one")
    return report("ok", f"the run of {expected:%Y-%m-%d %H:%M} UTC began")
