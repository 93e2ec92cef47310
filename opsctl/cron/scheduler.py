"""run-scheduled: begins each job at its time, as a child of its own, until it is told to end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from opsctl.cron.jobs import Job
from opsctl.cron.sign_of_life import FILE, show
from opsctl.cron.timetable import Timetable
from opsctl.postgres.processes import die_with_parent
from opsctl.times import format_time

TICK_SECONDS = 10.0
"""It wakes at least this often: a clock that was set is noticed then."""


class Log(Protocol):
    def info(self, event: str, /, **fields: Any) -> None: ...
    def warning(self, event: str, /, **fields: Any) -> None: ...


@dataclass
class Child:
    """A run under way. Its log lines go where ours go, one by one."""

    job: Job
    moment: datetime
    began: float
    process: "subprocess.Popen[bytes]"
    thread: threading.Thread | None = None


@dataclass
class Scheduler:
    """``words`` are the command line of a job; ``describe``, what the history knows of the run of a process."""

    timetable: Timetable
    words: Callable[[Job], list[str]]
    folder: Path
    source: str
    clock: Callable[[], datetime]
    log: Log
    describe: Callable[[Job, int], Mapping[str, Any]]
    runs: int = 0
    failed: int = 0
    children: dict[str, Child] = field(default_factory=dict)
    _is_warned: bool = False

    def run(self) -> None:
        """Until KeyboardInterrupt, which any signal to end is; then the children get SIGTERM, and are waited for."""
        started_at = self.clock()
        try:
            while True:
                for job, moment in self.timetable.due(self.clock()):
                    self._begin(job, moment)
                self._show(started_at)
                time.sleep(self._pause(self.clock()))
        finally:
            self._end_all()
            (self.folder / FILE).unlink(missing_ok=True)

    def _begin(self, job: Job, moment: datetime) -> None:
        running = self.children.get(job.command)
        if running is not None and running.process.poll() is None:
            self.log.warning(
                "schedule.overlap",
                job=job.command,
                scheduled_at=format_time(moment),
                message=f"{job.command} of {running.moment:%Y-%m-%d %H:%M} UTC still goes on; this one is left out.",
            )
            return
        try:
            process = subprocess.Popen(
                self.words(job),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # its log says how it ended, too
                stderr=subprocess.PIPE,  # no terminal, even if we have one: it is a scheduled run
                process_group=0,  # Ctrl-C is ours to pass on
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - it makes one call
            )
        except OSError as error:
            self.failed += 1
            self.log.warning("schedule.unstarted", job=job.command, message=str(error))
            return
        self.runs += 1
        child = Child(job, moment, time.monotonic(), process)
        self.children[job.command] = child
        self.log.info("schedule.began", job=job.command, scheduled_at=format_time(moment), pid=process.pid)
        child.thread = threading.Thread(target=self._follow, args=(child,), name=job.command, daemon=True)
        child.thread.start()

    def _follow(self, child: Child) -> None:
        """Pass its lines on, whole, and say how it ended."""
        if child.process.stderr is not None:
            for line in child.process.stderr:
                sys.stderr.write(line.decode("utf-8", "replace"))
                sys.stderr.flush()
        code = child.process.wait()
        self.failed += code != 0
        about = self.describe(child.job, child.process.pid)
        seconds = round(time.monotonic() - child.began, 3)
        self.log.info("schedule.ended", job=child.job.command, status=code, seconds=seconds, **about)

    def _show(self, started_at: datetime) -> None:
        jobs = {
            job.command: {
                "next_at": self.timetable.next_at(job),
                "running": (child := self.children.get(job.command)) is not None and child.process.poll() is None,
            }
            for job in self.timetable.jobs
        }
        try:
            show(self.folder, self.source, started_at=started_at, jobs=jobs)
        except OSError as error:
            if not self._is_warned:
                self._is_warned = True
                self.log.warning("schedule.unseen", message=f"{self.folder} cannot be written: {error.strerror}.")

    def _pause(self, now: datetime) -> float:
        following = [at for at in map(self.timetable.next_at, self.timetable.jobs) if at]
        seconds = min(((at - now).total_seconds() for at in following), default=TICK_SECONDS)
        return min(max(seconds, 0.05), TICK_SECONDS)

    def _end_all(self) -> None:
        running = [child for child in self.children.values() if child.process.poll() is None]
        for child in running:
            self.log.info("schedule.ending", job=child.job.command, pid=child.process.pid)
            child.process.terminate()
        for child in self.children.values():
            if child.thread is not None:
                child.thread.join()
