"""The checks of ``doctor``: the registry, and which of them a run is about.

The registry goes from the machine up to the application: every check comes after those it depends on, and of two that
fail alike the first one is the verdict's cause.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from opsctl.checks import (
    backups,
    capacity,
    clocks,
    configuration,
    counters,
    databases,
    disks,
    horizons,
    host,
    http,
    integrity,
    locks,
    repositories,
    schedules,
    services,
    sessions,
    tls,
    transactions,
    versions,
    wal,
)
from opsctl.checks.check import Check, CheckResult, Thresholds
from opsctl.checks.own import own_checks
from opsctl.checks.run import Unit
from opsctl.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from opsctl.config import Config

ALL_CHECKS: tuple[Check, ...] = (
    *disks.CHECKS,
    *host.CHECKS,
    *services.RUNTIME_CHECKS,
    *databases.CHECKS,
    *sessions.CHECKS,
    *transactions.CHECKS,
    *horizons.CHECKS,
    *counters.CHECKS,
    *disks.DATABASE_CHECKS,
    *wal.CHECKS,
    *integrity.CHECKS,
    *capacity.CHECKS,
    *clocks.DATABASE_CHECKS,
    *locks.DATABASE_CHECKS,
    *versions.CHECKS,
    *services.CHECKS,
    *repositories.CHECKS,
    *locks.CHECKS,
    *backups.CHECKS,
    *schedules.CHECKS,
    *http.CHECKS,
    *tls.CHECKS,
    *configuration.CHECKS,
)


def all_checks(config: "Config") -> tuple[Check, ...]:
    """The registry, and the user's own checks at its end. Raises ConfigurationError."""
    return (*ALL_CHECKS, *own_checks(config))


def choose_units(
    units: Sequence[Unit], wanted: Sequence[str], *, disabled: Iterable[str] = (), enabled: Iterable[str] = ()
) -> list[Unit]:
    """What ids (``db.connect``), prefixes (``db``) or either at a target (``db.billing``) name, and what that needs.

    Needed is what it comes after, and what may explain its failure.

    Where nothing is named it is everything but what is disabled. A check that is opt-in runs when it is enabled, or
    named by its whole id. Raises UsageError.
    """
    off, on = set(disabled) - set(wanted), {*enabled, *wanted}
    possible = [unit for unit in units if unit.check.id not in off and (not unit.check.opt_in or unit.check.id in on)]
    for word in wanted:
        if not any(is_named(word, unit.check.id, unit.target.name) for unit in possible):
            raise UsageError(f"There is no check {word!r}.", hint=_nearest(word, {unit.check.id for unit in units}))
    chosen = {
        unit
        for unit in possible
        if not wanted or any(is_named(word, unit.check.id, unit.target.name) for word in wanted)
    }
    needed = [unit for unit in possible if unit.result is None or unit.result.failed]  # else: not configured
    added = chosen
    while added:
        added = {
            each
            for each in needed
            if each not in chosen and any(unit.is_after(each) or unit.may_be_explained_by(each) for unit in added)
        }
        chosen |= added
    return [unit for unit in units if unit in chosen]


def choose_results(results: Sequence[CheckResult], wanted: Sequence[str]) -> list[CheckResult]:
    """The same for results there are already. Raises UsageError."""
    for word in wanted:
        if not any(is_named(word, each.id, each.target) for each in results):
            raise UsageError(
                f"There is no check {word!r} among them.", hint=_nearest(word, {each.id for each in results})
            )
    return [each for each in results if not wanted or any(is_named(word, each.id, each.target) for word in wanted)]


def thresholds_of(
    changed: Mapping[str, tuple[float | None, float | None]], *, source: str, checks: Sequence[Check] = ALL_CHECKS
) -> dict[str, Thresholds]:
    """The checks' thresholds with those of the configuration, (warn, crit) by id. Raises ConfigurationError."""
    found = {check.id: check.thresholds for check in checks}
    for name, (warn, crit) in changed.items():
        where = f'{source}: doctor.thresholds."{name}"'
        if name not in found:
            raise ConfigurationError(f"{where}: there is no such check.", hint=_nearest(name, found))
        default = found[name]
        if default.warn is None and default.crit is None:
            raise ConfigurationError(f"{where}: this check has no thresholds.", hint=f"`opsctl explain {name}`")
        limits = Thresholds(
            default.warn if warn is None else warn, default.crit if crit is None else crit, default.falling
        )
        if limits.contradict:
            order = "below" if limits.falling else "above"
            raise ConfigurationError(
                f"{where}: warn ({limits.warn:g}) is {order} crit ({limits.crit:g}).", hint="Give both, in order."
            )
        found[name] = limits
    return found


def check_ids(ids: Iterable[str], *, where: str, checks: Sequence[Check] = ALL_CHECKS) -> None:
    """Make sure that there are such checks. Raises ConfigurationError."""
    known = {check.id for check in checks}
    for name in ids:
        if name not in known:
            raise ConfigurationError(f"{where}: there is no check {name!r}.", hint=_nearest(name, known))


def explained(word: str, checks: Sequence[Check] = ALL_CHECKS) -> list[Check]:
    """The checks an id or a prefix names. Raises UsageError."""
    found = [check for check in checks if _is_of(check.id, word)]
    if not found:
        raise UsageError(f"There is no check {word!r}.", hint=_nearest(word, {check.id for check in checks}))
    return found


def _nearest(word: str, known: Iterable[str]) -> str:
    """A hint with what a wrong id was probably meant to be."""
    from opsctl.settings import nearest

    return nearest(word, sorted(known)) or "`opsctl explain` lists them all."


def is_named(word: str, id: str, target: str | None) -> bool:  # noqa: A002 - a check's id
    at_target = bool(target) and word.endswith(f".{target}")
    return _is_of(id, word) or (at_target and _is_of(id, word.removesuffix(f".{target}")))


def _is_of(id: str, prefix: str) -> bool:  # noqa: A002 - a check's id
    return id == prefix or id.startswith(f"{prefix}.")
