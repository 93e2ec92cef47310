import os
import pwd
import re
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opsctl.cli.output import Outcome, duration
from opsctl.cli.runbook import FileOption, load, problems_of
from opsctl.errors import ExitCode, OpsctlError, Refused, StepFailed, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.incident import Incident
    from opsctl.runbook import Runbook, Scenario, Step
    from opsctl.runbook.means import Answer, Means, Progress, Question
    from opsctl.runbook.run import Ran, StepResult

Only = Literal["observe"]

OptionalScenario = Annotated[
    str | None, typer.Argument(metavar="SCENARIO", help="A scenario's id, alias or title; with --resume it is known.")
]
PlanOption = Annotated[bool, typer.Option("--plan", help="Show every step, run none.")]
OnlyOption = Annotated[
    Only | None, typer.Option("--only", metavar="EFFECT", help="observe: run what only looks, leave out the rest.")
]
ConfirmOption = Annotated[
    list[str] | None,
    typer.Option("--confirm", metavar="STEP", help="Run this step without asking; once for each. There is no all."),
]
ResumeOption = Annotated[
    str | None,
    typer.Option("--resume", metavar="INCIDENT", help="Go on where a run of this incident ended; latest will do."),
]
SKIP, YES = frozenset({"s", "skip"}), frozenset({"y", "yes"})
TEXT_COLUMNS = 78
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def run(
    session: "Session",
    scenario: OptionalScenario = None,
    plan: PlanOption = False,
    only: OnlyOption = None,
    confirm: ConfirmOption = None,
    resume: ResumeOption = None,
    file: FileOption = None,
) -> Outcome:
    """Run a scenario of the runbook, step by step, into an incident's timeline.

    What only looks runs unasked. A change is asked for, then its checks are asked until they are green. Before a danger
    its name has to be typed, and a backup is taken and verified. Without a terminal a step that changes something runs
    only if --confirm names it.

    Example: [bold]opsctl runbook run disk-is-full --plan[/bold]
    """
    runbook = load(session, file)
    incident = session.incidents.find(resume) if resume else None
    found = runbook.scenario(_name(scenario, incident))
    runbook.require_sound(found, problems_of(session, runbook))
    _require_steps(found, confirm or [])
    if plan:
        return Outcome(_result(found), plan_text(found))
    return run_scenario(session, runbook, found, only=only, confirm=confirm or [], incident=incident)


def _name(scenario: str | None, incident: "Incident | None") -> str:
    of_incident = incident.summary().scenario if incident else None
    if scenario is not None and of_incident not in {None, scenario}:
        raise UsageError(
            f"The incident is one of {of_incident}, not of {scenario}.", hint="Leave the scenario out with --resume."
        )
    name = scenario or of_incident
    if name is None:
        raise UsageError("Name a scenario.", hint="`opsctl runbook list` shows what there is.")
    return name


def _require_steps(scenario: "Scenario", confirmed: list[str]) -> None:
    """Whatever --confirm names has to be a step that is confirmed: a slip must not look like a yes."""
    known = [step.id for step in scenario.steps if step.effect != "observe"]
    for name in confirmed:
        if name not in known:
            raise UsageError(
                f"{scenario.id} has no step {name!r} to confirm.",
                hint=f"There are: {', '.join(known)}." if known else "Nothing in it needs to be confirmed.",
            )


def run_scenario(
    session: "Session",
    runbook: "Runbook",
    scenario: "Scenario",
    *,
    only: Only | None = None,
    confirm: list[str],
    incident: "Incident | None" = None,
) -> Outcome:
    """Run a scenario that nothing is wrong with, and say what it came to."""
    from opsctl.runbook.resume import progress_of
    from opsctl.runbook.run import ScenarioRun

    parameters = _parameters(session, scenario)
    for renderable in plan_text(scenario):
        session.output.show(renderable)
    events = incident.events() if incident else ()
    finished, interrupted = progress_of(events, scenario)
    if incident is None:
        incident = _opened(session, runbook, scenario, parameters)
    else:
        _resumed(session, incident, interrupted)
    session.output.show(f"Incident {incident.id}")
    scenario_run = ScenarioRun(
        scenario,
        _means(session, incident, parameters, confirm),
        only_observe=only == "observe",
        finished=finished,
        interrupted=interrupted,
        has_captured=any(event.kind == "capture" for event in events),
    )
    try:
        ran = scenario_run.execute()
    except KeyboardInterrupt:
        session.output.show(f"\nTo go on: opsctl runbook run --resume {incident.id}")
        raise
    return _outcome(scenario, incident, ran)


def _parameters(session: "Session", scenario: "Scenario") -> dict[str, str]:
    """Their values: from the environment, else a person is asked."""
    values = {}
    for name in scenario.parameters:
        value = session.config.variables.get(name, "")
        if not value and session.is_interactive:
            value = session.ask(f"{name} (the runbook says what it is):")
        if not value:
            raise UsageError(
                f"The scenario {scenario.id} needs the parameter {name}.",
                hint=f"{name}=… opsctl runbook run {scenario.id}",
            )
        if value.startswith("-"):
            raise UsageError(f"The parameter {name} begins with -: a command would take it for an option.")
        values[name] = value
    return values


def _opened(session: "Session", runbook: "Runbook", scenario: "Scenario", parameters: dict[str, str]) -> "Incident":
    return session.incidents.open(
        scenario.id,
        scenario.title,
        run_id=session.run_id,
        runbook=runbook.source,
        runbook_sha256=runbook.digest,
        parameters=parameters or None,
    )


def _resumed(session: "Session", incident: "Incident", interrupted: frozenset[str]) -> None:
    text = "Resumed."
    if interrupted:
        text += f" Under way when the run before ended, so what it did is unknown: {', '.join(sorted(interrupted))}."
    incident.append("note", text=text, run_id=session.run_id)
    session.output.show(text)


def _means(session: "Session", incident: "Incident", parameters: dict[str, str], confirm: list[str]) -> "Means":
    from opsctl.checks import choose_results
    from opsctl.cli.capture import capture, record_checks
    from opsctl.cli.doctor import examine
    from opsctl.cli.steps import child_environment, run_opsctl
    from opsctl.runbook.means import Means
    from opsctl.runbook.programs import run_program
    from opsctl.services.budget import RestartBudget

    settings = session.config.runbook
    budget = RestartBudget(
        session.config.state_path / "steps.json",
        settings.budget,
        timedelta(minutes=settings.budget_minutes),
        done="run",
        again="run of it",
        allowance="[runbook] budget",
    )
    return Means(
        run_opsctl=partial(run_opsctl, session, show=partial(_show_output, session)),
        run_program=partial(run_program, environment=child_environment(session, parameters)),
        look=lambda words: choose_results(examine(session, list(words)), list(words)),
        ask=partial(_ask, session, frozenset(confirm)),
        tell=partial(_tell, session),
        record=incident.append,
        capture=partial(capture, session, incident),
        look_at_all=partial(record_checks, session, incident, when="after"),
        databases=list(session.config.databases),
        parameters=parameters,
        budget=budget,
        clock=session.clock,
    )


# What is shown and asked


def plan_text(scenario: "Scenario") -> "list[RenderableType]":
    """Every step: what it does, to what effect, what is green afterwards, and the way back."""
    from rich.text import Text

    lines: list[RenderableType] = [Text(scenario.title, style="bold")]
    for number, step in enumerate(scenario.steps, 1):
        lines.append(Text.assemble(f"{number:3}  ", (f"{step.effect:8}", STYLES[step.effect]), (step.id, "bold")))
        lines += [Text(f"     {line}") for line in _described(step)]
    return [*lines, ""]


STYLES = {"observe": "green", "change": "yellow", "danger": "bold red", "manual": "cyan"}


def _described(step: "Step") -> list[str]:
    told = [f"$ {each.text}" for each in step.commands] or _wrapped(step.text)
    if step.conditions:
        told.append(f"only if {' and '.join(map(str, step.conditions))}")
    if step.effect == "danger":
        told.append("first a fresh backup, verified")
    if step.verify:
        told.append(f"then green: {', '.join(step.verify)}, within {duration(step.wait_seconds)}")
    if step.undo is not None:
        told.append(f"undo: {step.undo.text}")
    return told


def _wrapped(text: str) -> list[str]:
    return [line for each in text.splitlines() for line in wrap(each, TEXT_COLUMNS - 5) or [""]]


def _ask(session: "Session", confirmed: frozenset[str], question: "Question") -> "Answer":
    """A person's answer. --confirm stands for the question whether a step is to be run, and for no other."""
    is_extra = question.is_undo or not (question.commands or question.step.effect == "manual")
    if question.step.id in confirmed and not is_extra:
        return "named"
    for line in ("", *_question_text(question)):
        session.output.show(line)
    if not session.is_interactive:
        return "refused"
    if question.target is not None:
        answer = session.ask(f"Type {question.target} to go on, s to skip; anything else stops:")
    elif question.step.effect == "manual":
        answer = session.ask("Done? [y/N, s to skip]")
    else:
        answer = session.ask(f"{'Undo it' if question.is_undo else 'Run it'}? [y/N, s to skip]")
    if answer == question.target or (question.target is None and answer.lower() in YES):
        return "run"
    return "skip" if answer.lower() in SKIP else "stop"


def _question_text(question: "Question") -> "list[RenderableType]":
    from rich.text import Text

    step = question.step
    heading = f"The way back from {step.id}" if question.is_undo else step.id
    style = "yellow" if question.is_undo else STYLES[step.effect]
    lines: list[RenderableType] = [Text.assemble((heading, "bold"), "  ", (step.effect, style))]
    lines += [Text(f"  {line}") for fact in question.facts for line in fact.splitlines()]
    if step.effect == "manual":
        return lines + [Text(f"  {line}") for line in _wrapped(step.text)]
    lines += [Text(f"  $ {each.text}", style="cyan") for each in question.commands]
    if question.commands:
        lines.append(f"  on {socket.gethostname()}, as {_user()}, in {Path.cwd()}")
    if question.commands and not question.is_undo:
        lines.append(f"  then green: {', '.join(step.verify)}, within {duration(step.wait_seconds)}")
        lines.append(f"  undo: {step.undo.text if step.undo else 'none'}")
    return lines


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _tell(session: "Session", progress: "Progress") -> None:
    from rich.text import Text

    step, kind = progress.step, progress.kind
    head = Text.assemble((step.id, "bold"), "  ", (step.effect, STYLES[step.effect]))
    if kind == "begins":
        session.output.show("")
        session.output.show(head)
        for line in progress.text.splitlines():
            session.output.show(Text(f"  $ {line}", style="cyan"))
    elif kind == "output":
        _show_output(session, progress.text)
    elif kind == "skipped":
        session.output.show(Text.assemble("\n", head, f"  {progress.text}"))
    elif kind == "waits":
        session.output.show(f"  waiting for {progress.text} to be green")
    elif progress.text:
        session.output.show(Text(f"  {progress.text}", style="" if kind == "safeguard" else "red"))
    for each in progress.results:
        told = f"  {each.status:7} {each.name}: {each.message}"
        session.output.show(Text(told, style="green" if each.status == "ok" else "red"))
    if kind == "ends" and progress.text:
        session.log().warning("step.failed", step=step.id, effect=step.effect, message=progress.text)
    elif kind == "ends":
        session.log().debug("step.done", step=step.id, effect=step.effect)


def _show_output(session: "Session", text: str) -> None:
    from rich.text import Text

    for line in text.splitlines():
        session.output.show(Text(f"  | {CONTROL.sub('', line)}"))


# What it came to


def _result(
    scenario: "Scenario", incident_id: str | None = None, steps: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    from opsctl.cli.runbook import step_result

    plan = [step_result(each) for each in scenario.steps]
    return {"incident": incident_id, "scenario": scenario.id, "plan": plan, "steps": steps or []}


def _outcome(scenario: "Scenario", incident: "Incident", ran: "Ran") -> Outcome:
    from opsctl.runbook.run import as_result

    result = _result(scenario, incident.id, [as_result(each) for each in ran.steps])
    fields = {"incident": incident.id, "scenario": scenario.id}
    text = [_step_line(each) for each in ran.steps]
    text.append(f"The timeline: opsctl incident show {incident.id}")
    error = _error(ran, incident) if ran.stopped_by else None
    code = ExitCode.ATTENTION if ran.needs_attention else ExitCode.DONE
    return Outcome(result, text, code, error=error, fields=fields)


def _step_line(result: "StepResult") -> str:
    said = f": {result.message}" if result.message else ""
    took = f" in {duration(result.duration_seconds)}" if result.state == "done" and result.duration_seconds else ""
    return f"{result.state.replace('_', ' '):10} {result.step.id}{took}{said}"


def _error(ran: "Ran", incident: "Incident") -> OpsctlError | None:
    last = ran.stopped_by
    if last is None:
        return None
    again = f"opsctl runbook run --resume {incident.id}"
    done = "" if ran.changed else " Nothing was changed."
    if last.state == "refused":
        return Refused(
            f"The step {last.step.id} was not run: {last.message}.{done}", hint=f"{again} --confirm {last.step.id}"
        )
    if last.state == "stopped":
        return Refused(f"Stopped before {last.step.id}: {last.message}.{done}", hint=f"To go on: {again}")
    return StepFailed(f"The step {last.step.id}: {last.message}.", hint=f"To go on: {again}")
