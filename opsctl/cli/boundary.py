"""The one error boundary: a command runs inside it, and every way it can end is said and counted here."""

import inspect
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.session import Options, Session
from opsctl.errors import DoctorExit, ExitCode, Interrupted, OpsctlError

if TYPE_CHECKING:
    from opsctl.cli.output import Outcome, Run

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The configuration file.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.")]
LogFileOption = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", help="Write the log there too, as JSON lines.", show_default=False),
]

COMMON = {
    "config": (ConfigOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "debug": (DebugOption, False),
    "log_file": (LogFileOption, None),
}
"""The options every command takes, with their defaults."""

PLUGINS = frozenset({"doctor"})
"""Commands a monitoring system runs: their exit code is a verdict, and whatever they could not do is "unknown"."""

RUN_AGAIN = "What was begun is cleaned up; run it again."

Body = Callable[..., "Outcome"]


Execute = Callable[[str, Body, Options, dict[str, Any]], int]
"""How a command is run once its words are understood; the exit code."""


def command(name: str, body: Body, execute: Execute) -> Callable[..., None]:
    """``body(session, …) -> Outcome`` as a function for Typer, with the common options, run by ``execute``."""
    signature = inspect.signature(body)
    own = list(signature.parameters.values())[1:]
    common = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for key, (annotation, default) in COMMON.items()
    ]
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]

    def run(**arguments: Any) -> None:
        options = Options(**{key: arguments.pop(key) for key in COMMON})
        raise typer.Exit(execute(name, body, options, arguments))

    run.__doc__ = body.__doc__
    run.__name__ = body.__name__
    run.__signature__ = signature.replace(parameters=[*keyword_only, *common], return_annotation=None)  # type: ignore[attr-defined]
    return run


def run_command(name: str, body: Body, options: Options, arguments: dict[str, Any]) -> int:
    """Run one command to its end: every error becomes a message, a hint and the documented exit code."""
    from opsctl.cli import run_report
    from opsctl.cli.output import Outcome

    session = Session(name, options)
    session.configure_logs()
    _handle_signals()
    try:
        outcome = outcome_of(session, body, arguments)
    except KeyboardInterrupt as error:
        outcome = Outcome(None, error=_interrupted(error))
    except BrokenPipeError:
        outcome = Outcome(None, error=Interrupted("Nobody read its output to the end.", exit_code=ExitCode.INTERRUPTED))
        run_report.end(session, outcome, session.run())
        return _closed_pipe()
    return _finish(session, outcome)


def outcome_of(session: Session, body: Body, arguments: dict[str, Any]) -> "Outcome":
    """What a command comes to, its errors too; only an interruption, and a reader that left, pass through."""
    from opsctl.cli import run_report
    from opsctl.cli.output import Outcome

    try:
        run_report.begin(session, arguments)
        return body(session, **arguments)
    except OpsctlError as error:
        return Outcome(None, error=error)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the boundary: whatever is left is a bug of ours
        interruption = _interruption_behind(error)
        if interruption is not None:
            raise interruption from None
        return Outcome(None, error=_bug(session, error))


def _finish(session: Session, outcome: "Outcome") -> int:
    """Print how the run ended, then tell others: whoever waits for the result does not wait for them."""
    from opsctl.cli import run_report

    _as_plugin(session, outcome)
    run = session.run()
    outcome, code = _print(session, outcome, run)
    with suppress(KeyboardInterrupt):
        run_report.end(session, outcome, run)
    return code


def _print(session: Session, outcome: "Outcome", run: "Run") -> tuple["Outcome", int]:
    """The outcome, and what the program ends with: they differ where nobody read to the end."""
    seconds = (run.finished_at - run.started_at).total_seconds()
    try:
        session.output.stop_progress()
        session.output.finish(run, outcome)
        sys.stdout.flush()
        _log_end(session, outcome, seconds)
    except (BrokenPipeError, SystemExit):  # the latter is Rich's word for it
        return outcome, _closed_pipe()
    except OSError as error:  # a full disk
        _closed_pipe()
        unsaid = OpsctlError(
            f"The result could not be printed: {error.strerror}.",
            hint="The work itself was done; only its output is lost.",
        )
        outcome = replace(outcome, error=outcome.error or unsaid)
        _as_plugin(session, outcome)
        with suppress(OSError):
            _log_end(session, outcome, seconds)
    return outcome, int(outcome.code)


def _as_plugin(session: Session, outcome: "Outcome") -> None:
    """A plugin's own failures end with UNKNOWN: any other code would be a verdict about what it checks."""
    error = outcome.error
    if session.command in PLUGINS and error is not None and not isinstance(error, Interrupted):
        error.exit_code = DoctorExit.UNKNOWN


def _log_end(session: Session, outcome: "Outcome", seconds: float) -> None:
    """The run's one canonical line."""
    fields = {"exit_code": int(outcome.code), "duration_seconds": round(seconds, 3), **outcome.fields}
    log = session.log()
    if outcome.error is not None:
        log.error(
            "run.failed",
            code=outcome.error.code,
            message=outcome.error.message,
            hint=outcome.error.hint,
            exc_info=outcome.error if session.options.debug else None,
            **_if_shown(session),
            **fields,
        )
    elif outcome.done:
        log.info("run.finished", **_if_shown(session), **fields)
    else:
        log.warning("run.finished", **_if_shown(session), **fields)


def _if_shown(session: Session) -> dict[str, bool]:
    """On a terminal the outcome itself is shown: the line about it is for the log file alone."""
    from opsctl.telemetry.logs import SHOWN

    return {SHOWN: not session.options.debug and sys.stderr.isatty()}


def _interruption_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The signal that another error came from: raised while a lock is taken back, it makes Python complain of that."""
    context = error.__context__
    while context is not None and not isinstance(context, KeyboardInterrupt):
        context = context.__context__
    return context


def _bug(session: Session, error: Exception) -> OpsctlError:
    bug = OpsctlError(
        f"This is a bug in opsctl: {type(error).__name__}: {error}",
        hint="Run it again with --debug and report what it prints.",
    )
    bug.exit_code, bug.code = ExitCode.BUG, "bug"
    bug.__cause__ = error
    session.log().error("run.bug", exc_info=error, **_if_shown(session))
    return bug


def _closed_pipe() -> int:
    """Whoever read our output has left (``opsctl list | head``): end without a word, as other programs do."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return 128 + signal.SIGPIPE


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. As with Ctrl-C, no ``except Exception`` stops it and psycopg cancels its query."""


def _interrupted(error: KeyboardInterrupt) -> Interrupted:
    if isinstance(error, _Ended):
        return Interrupted(f"Ended by {error}.", exit_code=ExitCode.TERMINATED, hint=RUN_AGAIN)
    return Interrupted("Interrupted.", exit_code=ExitCode.INTERRUPTED, hint=RUN_AGAIN)


def _handle_signals() -> None:
    """SIGTERM, and SIGHUP of a connection that drops, end the run in order: what was begun is cleaned up."""
    ended: list[int] = []

    def end(number: int, _frame: object) -> None:
        if not ended:  # else the cleaning up has begun, and a second one does not stop it
            ended.append(number)
            raise _Ended(signal.Signals(number).name)

    def dropped(unraisable: Any) -> None:
        """Python drops what is raised right after a fork or in a finalizer: the signal comes again in a moment."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        number = ended.pop() if ended else signal.SIGINT
        signal.signal(signal.SIGALRM, lambda _number, _frame: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.unraisablehook = dropped
    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup keeps its meaning
        signal.signal(signal.SIGHUP, end)
