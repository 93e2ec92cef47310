"""Which jobs are due, whatever the clock does in between. Pure: the clock is an argument."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from opsctl.cron.jobs import EARLY, Job

SET_BACK = timedelta(hours=3)
"""A clock that goes back further than this was wrong before: nothing waits until it is there again. As in cron."""

NOT_CAUGHT_UP = frozenset({"doctor"})
"""What was wrong while nobody looked is history."""


class Timetable:
    """When each job runs next. A moment is served once, late if need be; of several that were missed, the last one."""

    def __init__(self, jobs: Iterable[Job], last_begun: Mapping[str, datetime], *, now: datetime) -> None:
        """``last_begun``: when each command began last, as far as that is known. A run missed since is due at once."""
        self.jobs = tuple(jobs)
        self._served: dict[str, datetime] = {}
        for job in self.jobs:
            moment = job.schedule.last_run(now - _delay(job)) or now
            begun = last_begun.get(job.command)
            was_missed = begun is not None and begun < moment - EARLY and job.command not in NOT_CAUGHT_UP
            self._served[job.command] = moment - timedelta(seconds=1) if was_missed else moment

    def due(self, now: datetime) -> Iterator[tuple[Job, datetime]]:
        """What is to begin now, with the moment of the schedule that it is for; nothing is due twice."""
        for job in self.jobs:
            here = now - _delay(job)
            if here < self._served[job.command] - SET_BACK:
                self._served[job.command] = here
            following = job.schedule.next_run(self._served[job.command])
            if following is None or following > here:
                continue
            moment = job.schedule.last_run(here) or following
            self._served[job.command] = moment
            yield job, moment

    def next_at(self, job: Job) -> datetime | None:
        """When the job begins next, by its schedule and this host's delay."""
        following = job.schedule.next_run(self._served[job.command])
        return following and following + _delay(job)


def _delay(job: Job) -> timedelta:
    return timedelta(seconds=job.delay_seconds)
