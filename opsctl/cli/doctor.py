import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opsctl.cli.output import JsonOutput, Outcome, Output, Run
from opsctl.errors import ConfigurationError, DoctorExit, OpsctlError, UsageError

if TYPE_CHECKING:
    from opsctl.checks.check import CheckResult, Thresholds
    from opsctl.checks.report import Report
    from opsctl.checks.scope import Scope
    from opsctl.cli.session import Session

Format = Literal["text", "json", "nagios", "junit", "prometheus"]
FailOn = Literal["warn", "crit"]

LISTING_SECONDS = 4
INPUT_BYTES = 64 * 1024 * 1024
MAGIC = b"\x1f\x8b"
"""How a tar.gz begins; JSON does not."""

CheckWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="CHECK", help="Checks by id, prefix (db) or target (db.billing); all by default."),
]
FormatOption = Annotated[
    Format, typer.Option("--format", "-f", metavar="FORMAT", help="text, json, nagios, junit or prometheus.")
]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Check again and again, until Ctrl-C.")]
IntervalOption = Annotated[float, typer.Option("--interval", min=1, metavar="SECONDS", help="With --watch: how often.")]
FailOnOption = Annotated[
    FailOn, typer.Option("--fail-on", metavar="STATUS", help="warn, or crit: a warning alone then ends with 0.")
]
InputOption = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="Judge what --json saved, or a bundle, not what is now; - is stdin."),
]
RunOption = Annotated[
    bool, typer.Option("--run", help="On a terminal: run the scenario for the cause, then look again.")
]


def doctor(
    session: "Session",
    checks: CheckWords = None,
    format: FormatOption = "text",  # noqa: A002 - the option's name
    watch: WatchOption = False,
    interval: IntervalOption = 5,
    fail_on: FailOnOption = "warn",
    saved: InputOption = None,
    run: RunOption = False,
) -> Outcome:
    """Examine the databases and what they need: one verdict, one cause, and what to do about it.

    Ends with 0 ok, 1 warn, 2 crit, 3 unknown; also 3 when doctor itself could not run. What depends on something that
    failed is skipped. What is wrong comes with the runbook's scenario for it.

    Example: [bold]opsctl doctor db --fail-on crit[/bold]
    """
    choose_output(session, format, watch=watch, fail_on=fail_on)

    def show(results: list["CheckResult"]) -> Outcome:
        return _outcome(session, _with_scenarios(session, results), format, fail_on)

    if run:
        if watch or saved is not None or format != "text" or not session.is_interactive:
            raise UsageError(
                "--run is for a person at a terminal.",
                hint="`opsctl runbook run SCENARIO --confirm STEP` runs without one; verdict.scenario names it.",
            )
        return _run_scenario(session, checks or [], show)
    if saved is not None:
        if watch:
            raise UsageError("--input judges what was saved once.", hint="Leave out --watch.")
        return show(_judged_again(session, saved, checks or []))
    if watch:
        _watch(session, checks or [], interval, show)
    return _remembered(session, show(examine(session, checks or [])), checks or [])


def choose_output(
    session: "Session",
    format: str,  # noqa: A002 - the option's name
    *,
    watch: bool = False,
    fail_on: FailOn = "warn",
) -> None:
    """Everything the run prints, its errors too, is in the format that was asked for."""
    render = _renderer(session, format, fail_on)
    if session.options.json and render is not None:
        raise UsageError("--json and --format name two formats.", hint="Use one of them.")
    if session.options.json or format == "json":
        session.output = JsonOutput(session.redactor, indent=None if watch else 2)
    elif render is not None:
        session.output = FormattedOutput(session.output, render)


def choose_output_from(session: "Session", words: list[str]) -> None:
    """The same from a command line that was not understood: Nagios reads stdout then, too."""
    given = " ".join(words).replace("--format=", "--format ").replace("-f ", "--format ").partition("--format ")[2]
    if not session.options.json:
        choose_output(session, given.partition(" ")[0])


class FormattedOutput:
    """Another program's format for everything a run prints: a run that failed is an ``unknown`` there."""

    def __init__(self, output: Output, render: Callable[["Report"], str]) -> None:
        self._output = output
        self._render = render

    def finish(self, run: Run, outcome: Outcome) -> None:
        if outcome.error is not None:
            outcome = replace(outcome, text=[self._render(_failed(outcome.error))])
        self._output.finish(run, outcome)

    def start_progress(self, label: str, total: int | None) -> Callable[[int], None]:
        return self._output.start_progress(label, total)

    def stop_progress(self) -> None:
        self._output.stop_progress()

    def show(self, renderable: Any) -> None:
        self._output.show(renderable)

    def line(self, record: dict[str, Any], renderable: Any) -> None:
        self._output.line(record, renderable)


def _failed(error: OpsctlError) -> "Report":
    from opsctl.checks.check import CheckResult, Remedy
    from opsctl.checks.report import report

    remedy = Remedy(error.hint) if error.hint else None
    return report([CheckResult("doctor", "doctor runs", "unknown", error.message, code=error.code, remedy=remedy)])


def _renderer(session: "Session", format: str, fail_on: FailOn) -> Callable[["Report"], str] | None:  # noqa: A002
    from opsctl.cli import doctor_formats

    if format == "nagios":
        return doctor_formats.as_nagios
    if format == "junit":
        return lambda found: doctor_formats.as_junit(found, warnings_fail=fail_on == "warn")
    if format == "prometheus":
        return lambda found: doctor_formats.as_prometheus(found, at=session.clock())
    return None


def examine(session: "Session", words: list[str]) -> list["CheckResult"]:
    from opsctl.checks import all_checks, choose_units
    from opsctl.checks.run import list_units, run_checks

    scope, settings = scope_of(session), session.config.doctor
    units = list_units(all_checks(session.config), scope, _thresholds(session))
    chosen = choose_units(units, words, disabled=settings.disabled, enabled=settings.enabled)
    return run_checks(chosen, scope)


def scope_of(session: "Session") -> "Scope":
    from opsctl.checks.samples import Samples
    from opsctl.checks.scope import Scope

    return Scope(
        config=session.config,
        databases=_database_names(session),
        clock=session.clock,
        open_server=session.server,
        open_repositories=lambda: session.repositories,
        open_tools=session.tools_of,
        samples=Samples(session.config.state_path / "samples.json"),
        open_services=lambda: session.services,
    )


def _database_names(session: "Session") -> list[str]:
    """Every database there is to look at. A server that hangs while it is asked for its databases is one of them."""
    sections = session.config.databases
    if not any(each.all for each in sections.values()):
        return list(sections)
    answers: SimpleQueue[list[str]] = SimpleQueue()
    Thread(target=lambda: answers.put(session.database_names(None)), daemon=True).start()
    try:
        return answers.get(timeout=LISTING_SECONDS)
    except Empty:
        return list(sections)


def _thresholds(session: "Session") -> dict[str, "Thresholds"]:
    from opsctl.checks import all_checks, check_ids, thresholds_of

    config, settings = session.config, session.config.doctor
    checks = all_checks(config)
    check_ids(settings.disabled, where=f"{config.source}: doctor.disabled", checks=checks)
    check_ids(settings.enabled, where=f"{config.source}: doctor.enabled", checks=checks)
    changed = {name: (limits.warn, limits.crit) for name, limits in settings.thresholds.items()}
    return thresholds_of(changed, source=config.source, checks=checks)


def _judged_again(session: "Session", path: Path, words: list[str]) -> list["CheckResult"]:
    from opsctl.checks import choose_results
    from opsctl.checks.report import from_document, judge_again

    try:
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            data = file.read(INPUT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="--input FILE, or - for stdin.") from error
    if len(data) > INPUT_BYTES:
        raise UsageError(
            f"{path} is longer than {INPUT_BYTES} bytes.", hint="That is no report of doctor, nor a bundle."
        )
    document = _parsed(_of_bundle(data) if data.startswith(MAGIC) else data)
    return choose_results(judge_again(from_document(document), _thresholds(session)), words)


def _of_bundle(data: bytes) -> bytes:
    """Doctor's report in a bundle."""
    from opsctl.bundle import read_bundle

    members = read_bundle(io.BytesIO(data))
    if "doctor.json" not in members:
        raise UsageError("This bundle has no report of doctor.", hint="Its manifest says why, under missing.")
    return members["doctor.json"]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None  # said later, as for any other document


def _outcome(session: "Session", results: list["CheckResult"], format: str, fail_on: FailOn) -> Outcome:  # noqa: A002
    from opsctl.checks.report import as_document, from_results, report
    from opsctl.cli.doctor_formats import as_text

    # Before it is rendered: XML and label values escape what the redactor would have to recognise.
    document = session.redactor.deep(as_document(report(results)))
    found = report(from_results(document["checks"]))
    render = _renderer(session, format, fail_on)
    text = as_text(found) if render is None else [render(found)]
    code = DoctorExit[found.status.upper()]
    if code is DoctorExit.WARN and fail_on == "crit":
        code = DoctorExit.OK
    cause = found.verdict.cause
    return Outcome(document, text, code, fields={"status": found.status, **({"cause": cause} if cause else {})})


def _with_scenarios(session: "Session", results: list["CheckResult"]) -> list["CheckResult"]:
    """What is not well, with the runbook's scenario for it. A runbook that cannot be read keeps nobody from looking."""
    from opsctl.cli.runbook import load
    from opsctl.runbook.triggers import with_scenarios

    try:
        return with_scenarios(results, load(session))
    except ConfigurationError as error:
        session.log().warning("runbook.unread", message=error.message)
        return results


def _run_scenario(session: "Session", words: list[str], show: Callable[[list["CheckResult"]], Outcome]) -> Outcome:
    """Look, run the scenario for the cause, look again: the second verdict is the result."""
    from opsctl.cli.runbook import load, problems_of
    from opsctl.cli.runbook_run import run_scenario

    first = _remembered(session, show(examine(session, words)), words)
    name = (first.result or {})["verdict"]["scenario"]
    if name is None:
        return first
    for renderable in first.text:
        session.output.show(renderable)
    runbook = load(session)
    scenario = runbook.scenario(name)
    runbook.require_sound(scenario, problems_of(session, runbook))
    ran = run_scenario(session, runbook, scenario, confirm=[])
    for renderable in ran.text:
        session.output.show(renderable)
    if ran.error is not None:
        session.output.show(f"{ran.error.message} {ran.error.hint or ''}")
    return _remembered(session, show(examine(session, words)), words)


def _remembered(session: "Session", outcome: Outcome, words: list[str]) -> Outcome:
    """What was found is what the next run compares with, and what the metrics say until then."""
    from opsctl.cli.run_report import remember_checks

    if outcome.result is not None:
        remember_checks(session, outcome.result, is_whole=not words)
    return outcome


def _watch(
    session: "Session", words: list[str], interval: float, show: Callable[[list["CheckResult"]], Outcome]
) -> None:
    """Look and print, again and again; a signal ends it."""
    while True:
        started_at, started = session.clock(), time.monotonic()
        outcome = _remembered(session, show(examine(session, words)), words)
        if sys.stdout.isatty() and not session.options.json:
            sys.stdout.write("\x1b[H\x1b[2J")
        session.output.finish(Run(session.command, session.run_id, started_at, session.clock()), outcome)
        sys.stdout.flush()
        time.sleep(max(0.0, interval - (time.monotonic() - started)))
