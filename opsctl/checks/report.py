"""What a run of checks comes to: one status, one cause; and the same again from what an earlier run printed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from opsctl.checks.check import WORST_FIRST, CheckResult, Remedy, Status, Thresholds
from opsctl.errors import UsageError


@dataclass(frozen=True)
class Verdict:
    """The one thing to look at first. ``cause`` is a check's id, ``None`` when all is well."""

    cause: str | None
    target: str | None
    code: str | None
    summary: str
    scenario: str | None


@dataclass(frozen=True)
class Report:
    status: Status
    verdict: Verdict
    counts: Mapping[Status, int]
    checks: tuple[CheckResult, ...]


def report(results: Sequence[CheckResult]) -> Report:
    counts = {status: sum(each.status == status for each in results) for status in get_args(Status)}
    return Report(worst(results), verdict(results), counts, tuple(results))


def worst(results: Iterable[CheckResult]) -> Status:
    """The status of them all. Where nothing was looked at, nothing is known."""
    found = {each.status for each in results}
    return next((status for status in WORST_FIRST if status in found), "unknown")


def verdict(results: Sequence[CheckResult]) -> Verdict:
    """The worst one, and of several the first: the registry goes from the machine up, causes before effects."""
    status = worst(results)
    cause = next((each for each in results if each.status == status), None)
    if cause is None:
        return Verdict(None, None, None, "Nothing was checked.", None)
    if status == "ok":
        looked_at = sum(each.status == "ok" for each in results)
        return Verdict(None, None, None, f"All is well: {looked_at} checks.", None)
    scenario = cause.remedy.scenario if cause.remedy else None
    return Verdict(cause.id, cause.target, cause.code, f"{cause.name}: {cause.message}", scenario)


def as_document(found: Report) -> dict[str, Any]:
    """The ``result`` of ``doctor --json``."""
    return asdict(found)


def from_document(document: Any) -> list[CheckResult]:
    """The results in what ``doctor --json`` printed once. Raises UsageError."""
    try:
        return from_results(document["result"]["checks"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            "This is not what `opsctl doctor --json` prints.", hint="Save it with `opsctl doctor --json > saved.json`."
        ) from None


def from_results(saved: Iterable[Mapping[str, Any]]) -> list[CheckResult]:
    """Results from their JSON; keys of a later version are left out."""
    known = {field.name for field in fields(CheckResult)}
    results = []
    for each in saved:
        remedy = each["remedy"]
        values = {key: value for key, value in each.items() if key in known}
        results.append(CheckResult(**{**values, "remedy": Remedy(**remedy) if remedy else None}))
        if results[-1].status not in get_args(Status):
            raise ValueError(results[-1].status)
    return results


def judge_again(results: Iterable[CheckResult], thresholds: Mapping[str, Thresholds]) -> list[CheckResult]:
    """The same measurements under today's thresholds; what was not decided by a threshold stays as it was."""
    return [_judged(each, thresholds.get(each.id)) for each in results]


def _judged(result: CheckResult, thresholds: Thresholds | None) -> CheckResult:
    if thresholds is None or result.value is None:
        return result
    then = replace(thresholds, warn=result.warn, crit=result.crit)
    if then.judge(result.value) != result.status:
        return result
    status = thresholds.judge(result.value)
    return replace(result, status=status, warn=thresholds.warn, crit=thresholds.crit)
