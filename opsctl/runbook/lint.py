"""What is wrong with a runbook: its grammar, and what it names that is not there."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from opsctl.runbook import EFFECTS, Command, Problem, Runbook, Scenario, Step
from opsctl.runbook.effects import opsctl_effect, why_not_observed

SERVICE_COMMANDS = frozenset({"logs", "restart"})
DATABASE_COMMANDS = frozenset({"backup", "list", "drill"})

SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|secret|token$|api_?key$|private_?key$|credential|^auth$|dsn$", re.IGNORECASE
)
SECRETS = (
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]*:(?![$<{*…])[^\s@/]+@", re.IGNORECASE), "a password in a URL"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"\bAGE-SECRET-KEY-1[0-9A-Z]{8,}"), "an age identity"),
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS key"),
    (re.compile(r"\b(ghp|gho|ghs|github_pat|glpat|xox[abpr]|sk_live|rk_live)[_-][0-9A-Za-z_-]{10,}"), "a token"),
    (re.compile(r"\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\."), "a token"),
    (re.compile(r"\bBearer +(?![$<{*…])[0-9A-Za-z._~+/-]{8,}"), "a token"),
)
VALUE = re.compile(
    r"(?<![\w-])(?=(?:-{0,2}(?P<name>[A-Za-z_][\w-]*)(?:=|:\s+)|--(?P<option>[A-Za-z][\w-]*)\s+)"
    r"[\"']?(?P<value>[^\s$<{*…\"'-][^\s\"']*))"
)
"""``NAME=value``, ``name: value``, ``--name value``."""


@dataclass(frozen=True)
class Known:
    """What there is on this host. Where nothing can be known (no service is configured) it is ``None``."""

    wrong_check: Callable[[str, bool], str | None]
    """What is wrong with the name of a check (``service.bot``), if anything; whether it is a trigger's."""
    services: Collection[str] | None
    databases: Collection[str]
    usage: Callable[[Sequence[str]], tuple[str, str | None]]
    """An opsctl command line: the command's name (empty: none), and what is wrong with its arguments."""
    is_secret: Callable[[str], bool] = lambda _text: False
    """Whether a secret that opsctl knows stands in a text."""


def lint(runbook: Runbook, known: Known) -> list[Problem]:
    """Everything that is wrong, in the order of the file."""
    found = list(runbook.problems)
    found += _secrets(runbook, known)
    names: dict[str, Scenario] = {}
    for scenario in runbook.scenarios:
        for word in (scenario.id, *scenario.aliases):
            if names.setdefault(word, scenario) is not scenario:
                message = f"{word!r} names the scenario {names[word].title!r} already."
                found.append(Problem(scenario.line, message, scenario.id))
        for problem in _scenario(scenario, known):
            found.append(Problem(problem.line, problem.message, scenario.id))
    return sorted(found, key=lambda each: each.line)


def _scenario(scenario: Scenario, known: Known) -> Iterator[Problem]:
    for trigger in scenario.triggers:
        wrong = known.wrong_check(trigger, True)
        if wrong:
            yield Problem(scenario.line, f"triggers: {wrong}")
    for step in scenario.steps:
        yield from _step(step, scenario, known)
    declared, used = set(scenario.parameters), _parameters(scenario)
    for name in sorted(used.keys() - declared):
        yield Problem(
            used[name], f"The parameter {name} is not declared: a comment under the heading, parameters: {name}."
        )
    for name in sorted(declared - used.keys()):
        yield Problem(scenario.line, f"The parameter {name} is declared and not used.")


def _parameters(scenario: Scenario) -> dict[str, int]:
    """Those its commands take, each with a line it is used on."""
    commands = [each for step in scenario.steps for each in (*step.commands, *([step.undo] if step.undo else []))]
    return {name: each.line for each in commands for name in each.parameters}


def _step(step: Step, scenario: Scenario, known: Known) -> Iterator[Problem]:  # noqa: ARG001
    if step.changes and not step.is_named:
        yield Problem(step.line, f"A step of {step.effect} needs an id: it is confirmed by that.")
    if step.changes and not step.verify:
        yield Problem(step.line, f"The step {step.id} changes something and has no verify: what would be green then?")
    for check in step.checks:
        wrong = known.wrong_check(check, False)
        if wrong:
            yield Problem(step.line, f"{wrong} (step {step.id})")
    if step.effect == "danger":
        yield from _target(step, known)
    for command in step.commands:
        yield from _command(command, step, known)
    if step.undo is not None:
        yield from _undo(step.undo, step, known)


def _target(step: Step, known: Known) -> Iterator[Problem]:
    if step.target is None and len(known.databases) != 1:
        yield Problem(
            step.line, f"The step {step.id} needs target=, the database or service whose name is to be typed."
        )
    if step.target is not None and step.target not in {*known.databases, *(known.services or ())}:
        yield Problem(step.line, f"The target {step.target!r} is neither a database nor a service here.")


def _command(command: Command, step: Step, known: Known) -> Iterator[Problem]:
    if not command.is_opsctl:
        reason = why_not_observed(command.words)
        if step.effect == "observe" and reason:
            yield Problem(command.line, f"`{command.text}` makes this a step of change: {reason}.")
        return
    name, wrong = known.usage(command.words)
    if not name:
        yield Problem(command.line, f"`{command.text}`: {wrong}")
        return
    arguments = command.words[1 + len(name.split()) :]
    effect = opsctl_effect(name, arguments)
    if wrong is not None:
        yield Problem(command.line, f"`{command.text}`: {wrong}")
    elif effect is None:
        yield Problem(command.line, f"`{command.text}` has no place in a runbook: it does not end by itself, or asks.")
    elif EFFECTS.index(effect) > EFFECTS.index(step.effect):
        yield Problem(command.line, f"`{command.text}` makes this a step of {effect}, not {step.effect}.")
    yield from _names(name, command, arguments, known)


def _names(name: str, command: Command, arguments: Sequence[str], known: Known) -> Iterator[Problem]:
    """Services and databases that are named outright."""
    named = positional(arguments)
    if name in SERVICE_COMMANDS and known.services is not None:
        for each in named:
            if each not in known.services and not each.startswith("$"):
                yield Problem(command.line, f"There is no service {each!r} here (`{command.text}`).")
    if name in DATABASE_COMMANDS:
        for each in named:
            if each not in known.databases and not each.startswith("$"):
                yield Problem(command.line, f"There is no database {each!r} here (`{command.text}`).")


def positional(arguments: Sequence[str]) -> list[str]:
    """What is neither an option nor the value of one, as far as it can be told: all of opsctl's here take a value."""
    flags = {"--new-server", "--recreate", "--json", "--quiet", "-q", "--debug"}
    found = []
    for before, word in pairwise(["", *arguments]):
        is_value = before.startswith("-") and "=" not in before and before not in flags
        if not word.startswith("-") and not is_value:
            found.append(word)
    return found


def _undo(command: Command, step: Step, known: Known) -> Iterator[Problem]:
    if not command.is_opsctl:
        return
    name, wrong = known.usage(command.words)
    if not name or wrong is not None:
        yield Problem(step.line, f"undo: `{command.text}`: {wrong}")
    elif opsctl_effect(name, command.words[1 + len(name.split()) :]) is None:
        yield Problem(step.line, f"undo: `{command.text}` has no place in a runbook.")


def _secrets(runbook: Runbook, known: Known) -> Iterator[Problem]:
    """Lines with a secret in them. The value is never repeated."""
    bounds = [(each.line, each.id) for each in runbook.scenarios]
    steps = {number: step for each in runbook.scenarios for step in each.steps for number in _lines_of(step)}
    for number, line in enumerate(runbook.text.split("\n"), 1):
        found = next((what for pattern, what in SECRETS if pattern.search(line)), None)
        if found is None and known.is_secret(line):
            found = "a secret of the configuration"
        if found is None and number in steps and _assigns_secret(line):
            found = "what looks like a password or a token"
        if found is not None:
            scenario = next((name for begin, name in reversed(bounds) if begin <= number), None)
            message = f"There is {found} in the runbook: take it out, and pass it in the environment."
            yield Problem(number, message, scenario)


def _lines_of(step: Step) -> range:
    return range(step.line, step.line + step.text.count("\n") + 2)


def _assigns_secret(line: str) -> bool:
    """``--password hunter2``, ``PGPASSWORD=…``: a name of a secret with a value of its own."""
    found = ((match["name"] or match["option"], match["value"]) for match in VALUE.finditer(line))
    return any(SECRET_NAME.search(name) and len(value) >= 4 for name, value in found)
