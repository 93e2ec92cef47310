"""What a step of a runbook runs: opsctl's own commands in this process, others without a shell."""

import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from io import StringIO
from typing import TYPE_CHECKING, Any

import typer

from opsctl.cli.boundary import PLUGINS, Body, outcome_of
from opsctl.cli.session import Options, Session
from opsctl.errors import ExitCode, Interrupted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.output import Outcome, Output, Run
    from opsctl.runbook.programs import Done
    from opsctl.stream import Advance

COLUMNS = 100
HELP_OPTIONS = frozenset({"--help", "-h", "--version"})
ENGINE_VARIABLES = ("DOCKER_", "COMPOSE_")
"""What the programs of a step see besides what PostgreSQL's programs do."""


def usage(words: Sequence[str]) -> tuple[str, str | None]:
    """The name of the opsctl command that a command line is about, and what is wrong with its arguments."""
    from opsctl.cli.app import COMMANDS, meant

    name = meant(list(words[1:]))
    if name not in {each for each, _, _ in COMMANDS}:
        return "", f"There is no command {' '.join(words[:2])!r}."
    if HELP_OPTIONS & set(words):
        return name, "It shows help and does nothing."
    try:
        _understood(words)
    except typer.TyperException as error:
        return name, error.format_message()
    return name, None


def _understood(words: Sequence[str]) -> tuple[str, Body, Options, dict[str, Any]]:
    """The command that a command line is, with its arguments. Raises TyperException."""
    calls: list[tuple[str, Body, Options, dict[str, Any]]] = []
    parser, read = _parser()
    read.append(calls)
    try:
        parser(args=list(words[1:]), prog_name="opsctl", standalone_mode=False)
    finally:
        read.pop()
    return calls[0]


@cache
def _parser() -> tuple[Any, list[list[Any]]]:
    """The application without its commands' bodies: what it reads is appended to the last of these lists."""
    from opsctl.cli.app import new_app

    read: list[list[Any]] = []

    def execute(*call: Any) -> int:
        read[-1].append(call)
        return 0

    return typer.main.get_command(new_app(execute)), read


def run_opsctl(
    session: Session,
    words: Sequence[str],
    *,
    timeout_seconds: float | None,
    confirmed: str | None = None,
    is_preview: bool = False,
    show: Callable[[str], None] = lambda _text: None,
) -> "Done":
    """Run an opsctl command as a step of ``session``'s run. ``confirmed`` names what a person confirmed."""
    from opsctl.cli import run_report
    from opsctl.cli.output import Outcome
    from opsctl.runbook.programs import Done

    try:
        name, body, options, arguments = _understood(words)
    except typer.TyperException as error:
        return Done("failed", message=error.format_message(), exit_code=int(ExitCode.USAGE))
    options = replace(options, json=session.options.json, quiet=session.options.quiet, debug=session.options.debug)
    confirms = None if confirmed is None else partial(_confirms, confirmed)
    nested = Session(name, options, within=session, is_confirmed=confirms)
    output = nested.output = _StepOutput(session.output, None if is_preview else show)
    try:
        with _time_limit(timeout_seconds) as is_over:
            outcome = outcome_of(nested, body, arguments)
    except KeyboardInterrupt:
        stopped = Interrupted("Stopped.", exit_code=ExitCode.INTERRUPTED)
        run_report.end(nested, Outcome(None, error=stopped), nested.run())
        if not is_over():
            raise
        output.stop_progress()
        message = f"it did not end within {round(timeout_seconds or 0, 1):g} s and was stopped"
        return Done("timed_out", output.text, message=message)
    run_report.end(nested, outcome, nested.run())
    output.stop_progress()
    for renderable in outcome.text:
        output.show(renderable)
    return _done(name, outcome, output.text)


def _confirms(confirmed: str, name: str) -> bool:
    return confirmed in {"", name}


def _done(name: str, outcome: "Outcome", output: str) -> "Done":
    from opsctl.runbook.programs import Done

    code = int(outcome.code)
    is_done = code in {ExitCode.DONE, ExitCode.ATTENTION} or (name in PLUGINS and outcome.error is None)
    message = outcome.error.message if outcome.error else ""
    return Done("done" if is_done else "failed", output, code, message, outcome.result)


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[Callable[[], bool]]:
    """Interrupt the main thread when the time is over, as Ctrl-C would: what was begun is cleaned up."""
    over = threading.Event()
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield over.is_set
        return
    main = threading.main_thread().ident or 0
    finished = threading.Event()

    def watch() -> None:
        if not finished.wait(seconds):
            over.set()
            signal.pthread_kill(main, signal.SIGINT)

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    watcher.start()
    try:
        yield over.is_set
    finally:
        finished.set()
        watcher.join()


class _StepOutput:
    """Everything a command shows, as text; its progress is the run's."""

    def __init__(self, output: "Output", show: Callable[[str], None] | None) -> None:
        self._output = output
        self._show = show
        self.text = ""

    def finish(self, run: "Run", outcome: "Outcome") -> None:
        """The run that this is a step of prints the result."""

    def start_progress(self, label: str, total: int | None) -> "Advance":
        return self._output.start_progress(label, total)

    def stop_progress(self) -> None:
        self._output.stop_progress()

    def show(self, renderable: "RenderableType") -> None:
        self.stop_progress()
        text = rendered(renderable)
        self.text += text
        if self._show is not None:
            self._show(text)

    def line(self, record: dict[str, Any], renderable: "RenderableType") -> None:  # noqa: ARG002
        self.show(renderable)


def rendered(renderable: "RenderableType") -> str:
    """As plain text."""
    from rich.console import Console

    sink = StringIO()
    Console(file=sink, highlight=False, width=_columns(), emoji=False, markup=False, color_system=None).print(
        renderable
    )
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _columns() -> int:
    return shutil.get_terminal_size().columns - 3 if sys.stderr.isatty() else COLUMNS


def child_environment(session: Session, parameters: dict[str, str]) -> dict[str, str]:
    """What a step's programs see: no secret but those PostgreSQL's and Docker's own variables hold."""
    config = session.config
    engine = {name: value for name, value in config.variables.items() if name.startswith(ENGINE_VARIABLES)}
    return {**config.child_environment, **engine, **parameters}
