"""What a repository is good for: it is listed, everything opsctl does with it is tried, and nothing is left behind."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from opsctl.amounts import size
from opsctl.catalog import Catalog
from opsctl.errors import RepositoryUnreachable
from opsctl.repository import CLOCK_LIMIT, Repository
from opsctl.storage import Storage, Trial, TrialStatus

CLOCK_WARNING = timedelta(seconds=60)
ROOM_WARNING, ROOM_LIMIT = 2.0, 1.2
"""Free space in sizes of what the last backups took."""

LEFT_OVER_AFTER = timedelta(hours=1)
"""No check takes that long: what one wrote before that was left by one that was killed."""

WORST_FIRST: tuple[TrialStatus, ...] = ("fail", "warn", "ok", "skip")


@dataclass(frozen=True)
class Examined:
    """One repository and what was tried. ``usable``: a backup can be written to it."""

    name: str
    url: str
    trials: tuple[Trial, ...]

    @property
    def status(self) -> TrialStatus:
        return next(status for status in WORST_FIRST if any(each.status == status for each in self.trials))

    @property
    def usable(self) -> bool:
        return not any(each.vital and each.status == "fail" for each in self.trials)


def examine(repository: Repository, *, clock: Callable[[], datetime]) -> Examined:
    """Try one repository. Raises nothing of its storage: what does not work is a trial that failed."""
    trials: list[Trial] = []
    try:
        catalog = repository.catalog()
        trials.append(_reachable(repository, catalog))
        remove_left_over(repository.storage, clock())
        trials += repository.storage.examine()
        trials += _clock(repository, clock)
        trials += _space(repository, catalog)
    except RepositoryUnreachable as error:
        trials.append(Trial("reachable", "fail", error.message, error.hint, vital=True))
    return Examined(repository.name, repository.storage.address, tuple(trials))


def remove_left_over(storage: Storage, now: datetime) -> None:
    """What checks wrote that were killed; by the service's clock, where there is one."""
    with suppress(RepositoryUnreachable):  # the trials say what is wrong
        storage.remove_trials((storage.now() or now) - LEFT_OVER_AFTER)


def _reachable(repository: Repository, catalog: Catalog) -> Trial:
    count = len(catalog.backups)
    held = "1 backup" if count == 1 else f"{count} backups"
    return Trial("reachable", "ok", f"{repository.storage.address} answers and has {held}.", vital=True)


def _clock(repository: Repository, clock: Callable[[], datetime]) -> Iterator[Trial]:
    if repository.storage.now() is None:
        return
    skew = repository.clock_skew(clock)
    text = f"The service's clock and this host's are {skew.total_seconds():.0f} s apart."
    if skew > CLOCK_LIMIT:
        yield Trial("clock", "fail", f"{text} Nothing is pruned.", "Set this host's clock; run a time service.")
    elif skew > CLOCK_WARNING:
        yield Trial("clock", "warn", text, "Run a time service: beyond 5 minutes nothing is pruned.")
    else:
        yield Trial("clock", "ok", text)


def _space(repository: Repository, catalog: Catalog) -> Iterator[Trial]:
    free = repository.storage.free_bytes()
    needed = catalog.next_run_bytes
    if free is None or not needed:
        return
    times = free / needed
    text = f"{size(free)} are free; the last backups took {size(needed)}."
    hint = "`opsctl prune --dry-run` shows what a shorter retention would free."
    if times < ROOM_LIMIT:
        yield Trial("space", "fail", text, hint)
    elif times < ROOM_WARNING:
        yield Trial("space", "warn", text, hint)
    else:
        yield Trial("space", "ok", text)
