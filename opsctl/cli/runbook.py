import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.output import Outcome, PlainTable
from opsctl.errors import ConfigurationError, OpsctlError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.checks.run import Unit
    from opsctl.cli.session import Session
    from opsctl.runbook import Command, Problem, Runbook, Scenario, Step
    from opsctl.runbook.lint import Known

ScenarioName = Annotated[
    str | None, typer.Argument(metavar="SCENARIO", help="A scenario's id, alias or title; all of them by default.")
]
FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Another runbook than the configured one.")
]


def list_scenarios(session: "Session", file: FileOption = None) -> Outcome:
    """List the scenarios of the runbook.

    Example: [bold]opsctl runbook list[/bold]
    """
    runbook = load(session, file)
    table = PlainTable()
    for heading in ("SCENARIO", "STEPS"):
        table.add_column(heading)
    for each in runbook.scenarios:
        table.add_row(each.id, _counted(each))
    result = {"path": runbook.source, "scenarios": [_scenario_result(each) for each in runbook.scenarios]}
    return Outcome(result, [table], fields={"scenarios": len(runbook.scenarios)})


def _counted(scenario: "Scenario") -> str:
    effects = [each.effect for each in scenario.steps]
    kinds = dict.fromkeys(effects)
    return ", ".join(f"{effects.count(kind)} {kind}" for kind in kinds)


def _scenario_result(scenario: "Scenario") -> dict[str, Any]:
    return {
        "id": scenario.id,
        "title": scenario.title,
        "line": scenario.line,
        "triggers": list(scenario.triggers),
        "aliases": list(scenario.aliases),
        "parameters": list(scenario.parameters),
        "owner": scenario.owner,
        "steps": [step_result(each) for each in scenario.steps],
    }


def step_result(step: "Step") -> dict[str, Any]:
    return {
        "id": step.id,
        "effect": step.effect,
        "line": step.line,
        "commands": [each.text for each in step.commands],
        "text": step.text,
        "if": [str(each) for each in step.conditions],
        "verify": list(step.verify),
        "undo": step.undo.text if step.undo else None,
        "target": step.target,
        "timeout_seconds": step.timeout_seconds,
        "wait_seconds": step.wait_seconds,
    }


def show(session: "Session", scenario: ScenarioName = None, file: FileOption = None) -> Outcome:
    """Print the runbook's Markdown, or one scenario of it.

    The whole is a file to edit: opsctl runbook show > runbook.md.

    Example: [bold]opsctl runbook show disk-is-full[/bold]
    """
    from rich.text import Text

    runbook = load(session, file)
    if scenario is None:
        whole = {"path": runbook.source, "scenario": None, "markdown": runbook.text}
        return Outcome(whole, [Text(runbook.text.rstrip("\n"))])
    found = runbook.scenario(scenario)
    result = {"path": runbook.source, "scenario": _scenario_result(found), "markdown": found.text}
    return Outcome(result, [Text(found.text.rstrip("\n"))])


def lint(session: "Session", file: FileOption = None) -> Outcome:
    """Find what is wrong in the runbook, line by line: verbs, keys, ids, commands, checks, services, secrets.

    Ends with 10 when something is. Nothing of a scenario runs as long as something is wrong in it.

    Example: [bold]opsctl runbook lint --file docs/runbook.md[/bold]
    """
    runbook = load(session, file)
    problems = problems_of(session, runbook)
    result = {
        "path": runbook.source,
        "scenarios": len(runbook.scenarios),
        "problems": [{"line": each.line, "scenario": each.scenario, "message": each.message} for each in problems],
    }
    text = [f"{runbook.source}:{each.line}: {each.message}" for each in problems]
    fields = {"problems": len(problems)}
    if problems:
        error = ConfigurationError(
            f"{runbook.source} has {len(problems)} {'problem' if len(problems) == 1 else 'problems'}.",
            hint="A scenario runs when nothing is wrong in it.",
        )
        return Outcome(result, text, error=error, fields=fields)
    return Outcome(result, [f"{runbook.source}: {len(runbook.scenarios)} scenarios, nothing wrong."], fields=fields)


def try_out(session: "Session", scenario: ScenarioName = None, file: FileOption = None) -> Outcome:
    """Try what can be tried of the runbook without changing anything: whether it could run here, now.

    That is what lint finds, and besides: every program of every step is installed, every service it names has a
    container, and every check it waits for can be made. No step is run.

    Example: [bold]opsctl runbook test disk-is-full[/bold]
    """
    runbook = load(session, file)
    chosen = [runbook.scenario(scenario)] if scenario else list(runbook.scenarios)
    problems = problems_of(session, runbook)
    rows = [row for each in chosen for row in _tried(session, runbook, each, problems)]
    bad = [row for row in rows if row["status"] != "ok"]
    table = PlainTable()
    for heading in ("STATUS", "SCENARIO", "FOUND"):
        table.add_column(heading)
    for row in rows:
        if row["status"] != "ok":
            table.add_row(row["status"], row["scenario"], row["message"])
    fine = [each.id for each in chosen if not any(row["scenario"] == each.id for row in bad)]
    text: list[RenderableType] = [table] if bad else []
    text.append(f"Ready: {', '.join(fine)}." if fine else "No scenario is ready.")
    result = {"path": runbook.source, "ready": fine, "tried": rows}
    fields = {"ready": len(fine), "problems": len(bad)}
    if bad:
        error = ConfigurationError(
            f"{len(chosen) - len(fine)} of {len(chosen)} scenarios would not run here.",
            hint="Correct the runbook, or what it names: see above.",
        )
        return Outcome(result, text, error=error, fields=fields)
    return Outcome(result, text, fields=fields)


def _tried(
    session: "Session", runbook: "Runbook", scenario: "Scenario", problems: "Sequence[Problem]"
) -> list[dict[str, Any]]:
    own = [each for each in problems if each.scenario in {None, scenario.id}]
    if own:
        return [_row("wrong", scenario, f"{runbook.source}:{each.line}: {each.message}") for each in own]
    commands = [each for step in scenario.steps for each in (*step.commands, *([step.undo] if step.undo else []))]
    rows = [
        _program(session, scenario, name) for name in dict.fromkeys(c.words[0] for c in commands if not c.is_opsctl)
    ]
    services = dict.fromkeys(name for command in commands for name in _services_in(command))
    return rows + [_service(session, scenario, name) for name in services] + _checks(session, scenario)


def _row(status: str, scenario: "Scenario", message: str) -> dict[str, Any]:
    return {"status": status, "scenario": scenario.id, "message": message}


def _program(session: "Session", scenario: "Scenario", name: str) -> dict[str, Any]:
    found = shutil.which(name, path=":".join(session.config.search_path))
    return _row("ok" if found else "missing", scenario, f"{name} is {found or 'not on PATH'}")


def _services_in(command: "Command") -> list[str]:
    from opsctl.runbook.lint import SERVICE_COMMANDS, positional

    if not command.is_opsctl or command.words[1] not in SERVICE_COMMANDS:
        return []
    return [each for each in positional(command.words[2:]) if not each.startswith("$")]


def _service(session: "Session", scenario: "Scenario", name: str) -> dict[str, Any]:
    try:
        found = session.services.named(name)
    except OpsctlError as error:
        return _row("missing", scenario, error.message)
    return _row("ok", scenario, f"the service {name} is {', '.join(each.container for each in found)}")


def _checks(session: "Session", scenario: "Scenario") -> list[dict[str, Any]]:
    from opsctl.checks import choose_results
    from opsctl.cli.doctor import examine

    words = list(dict.fromkeys(word for step in scenario.steps for word in step.checks))
    results = choose_results(examine(session, words), words) if words else []
    return [
        _row("ok" if each.status != "unknown" else "unknown", scenario, f"{each.name} is {each.status}: {each.message}")
        for each in results
    ]


# What the commands share


def load(session: "Session", file: Path | None = None) -> "Runbook":
    """The runbook that was named, else the configured one, else the shipped one. Raises ConfigurationError."""
    from opsctl.runbook.files import read, shipped

    path = file or session.config.runbook_path or shipped(session.config.runbook.language)
    return read(path)


def problems_of(session: "Session", runbook: "Runbook") -> "list[Problem]":
    from opsctl.runbook.lint import lint as find_problems

    return find_problems(runbook, _known(session))


def _known(session: "Session") -> "Known":
    """What there is here for a runbook to name."""
    from opsctl.checks import all_checks
    from opsctl.checks.run import list_units
    from opsctl.cli.doctor import scope_of
    from opsctl.cli.steps import usage
    from opsctl.runbook.lint import Known

    config = session.config
    units = list_units(all_checks(config), scope_of(session), {})
    session.redactor.add(config.secrets())
    return Known(
        wrong_check=lambda word, is_trigger: _wrong_check(units, word, is_trigger=is_trigger),
        services=list(config.services) or None,
        databases=list(config.databases),
        usage=usage,
        is_secret=lambda text: session.redactor.text(text) != text,
    )


def _wrong_check(units: "Sequence[Unit]", word: str, *, is_trigger: bool) -> str | None:
    """What is wrong with a check's name, if anything. What leads to a scenario need not be configured here."""
    from opsctl.checks import is_named
    from opsctl.checks.own import PREFIX

    named = [each for each in units if is_named(word, each.check.id, each.target.name)]
    of_kind = [each for each in units if word.partition(".")[0] == each.check.id.partition(".")[0]]
    if any(map(_can_look, named)) or (is_trigger and of_kind and not word.startswith(PREFIX)):
        return None
    if named or (of_kind and not any(map(_can_look, of_kind))):
        return f"The check {word!r} has nothing to look at here: nothing of the kind is configured."
    return f"There is no check {word!r}."


def _can_look(unit: "Unit") -> bool:
    return unit.result is None or unit.result.failed
