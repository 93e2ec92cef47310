"""What checks come to: whether a change worked, whether a step is needed."""

from collections.abc import Sequence

from opsctl.checks.check import CheckResult, Status


def is_green(results: Sequence[CheckResult]) -> bool:
    """Whether something was found well and nothing was not; what is not configured does not count."""
    return any(each.status == "ok" for each in results) and all(
        each.status == "ok" or (each.status == "skip" and each.because is None) for each in results
    )


def status_of(results: Sequence[CheckResult]) -> Status:
    """What several results come to. One that was not looked at because of a failure is unknown."""
    found = {"unknown" if each.status == "skip" and each.because else each.status for each in results}
    order: tuple[Status, ...] = ("crit", "unknown", "warn", "ok")
    return next((status for status in order if status in found), "skip")
