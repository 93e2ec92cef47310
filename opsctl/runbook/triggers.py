"""From a failed check to the scenario that is for it."""

from collections.abc import Sequence
from dataclasses import replace

from opsctl.checks.check import CheckResult, Remedy
from opsctl.runbook import Runbook, Scenario

BAD = frozenset({"warn", "crit", "unknown"})


def scenario_for(runbook: Runbook, result: CheckResult) -> Scenario | None:
    """The scenario whose trigger names this check most closely; of several, the first in the file."""
    found = [(_closeness(trigger, result), each) for each in runbook.scenarios for trigger in each.triggers]
    best = max((closeness for closeness, _ in found), default=0)
    return next((each for closeness, each in found if closeness == best), None) if best else None


def with_scenarios(results: Sequence[CheckResult], runbook: Runbook) -> list[CheckResult]:
    """The results, what is not well with the scenario for it."""
    return [_with_scenario(each, runbook) if each.status in BAD else each for each in results]


def _with_scenario(result: CheckResult, runbook: Runbook) -> CheckResult:
    scenario = scenario_for(runbook, result)
    if scenario is None:
        return result
    remedy = result.remedy or Remedy("The runbook has a scenario for it.")
    return replace(result, remedy=replace(remedy, scenario=scenario.id))


def _closeness(trigger: str, result: CheckResult) -> int:
    """How much of a result a trigger names; zero when it means another check."""
    word, score = trigger, 0
    if result.target and trigger.endswith(f".{result.target}"):
        word, score = trigger.removesuffix(f".{result.target}"), 1000
    if result.id == word:
        return score + 100 + len(word)
    return score + len(word) if result.id.startswith(f"{word}.") else 0
