"""Structured logs on stderr, JSON lines or readable lines on a terminal, and in a file if there is one."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TextIO, get_args

from opsctl.telemetry.log_context import parse_context
from opsctl.telemetry.log_file import LogFile
from opsctl.telemetry.log_schemas import LogSchema, Record, as_line, renamer
from opsctl.telemetry.recent import Recent
from opsctl.telemetry.redact import Redactor

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LogFormat = Literal["json", "console"]

SHOWN = "_shown"
"""A field of lines whose content a person has on the screen already: they are for the file alone."""


@dataclass(frozen=True)
class LogStyle:
    """How log lines look. ``context`` is what the caller wants in each of them."""

    format: LogFormat
    schema: LogSchema = "plain"
    context: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """What is wrong with the context that was given."""
    environment: str | None = None


def log_style(variables: Mapping[str, str], stream: TextIO, *, environment: str | None) -> LogStyle:
    """As the variables want it. One that makes no sense is passed over here: the configuration names it."""
    asked, schema = variables.get("OPSCTL_LOG_FORMAT"), variables.get("OPSCTL_LOG_SCHEMA")
    usual: LogFormat = "console" if stream.isatty() else "json"
    context, problem = parse_context(variables.get("OPSCTL_LOG_CONTEXT", ""))
    return LogStyle(
        asked if asked in get_args(LogFormat) else usual,  # type: ignore[arg-type]
        schema if schema in get_args(LogSchema) else "plain",  # type: ignore[arg-type]
        context,
        problem,
        environment,
    )


def configure_logs(
    *,
    style: LogStyle,
    quiet: bool,
    debug: bool,
    redactor: Redactor,
    recent: Recent,
    stream: TextIO,
    path: Path | None,
) -> None:
    """Set structlog up for this run. With ``quiet`` the stream gets warnings and errors only; the others get all."""
    import structlog

    def redact(_logger: Any, _method: str, event: Any) -> Any:
        return redactor.deep(event)

    def leave_out(_logger: Any, _method: str, event: Any) -> Any:
        is_shown = event.pop(SHOWN, False) and style.format == "console"  # who asks for JSON gets every line
        if is_shown or (quiet and event["level"] in {"debug", "info"}):
            raise structlog.DropEvent
        return event

    rename = renamer(style.schema, callers=frozenset(style.context), environment=style.environment)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _explain_exceptions(),
            redact,
            recent,
            *([_FileSink(LogFile(path), rename)] if path else []),
            leave_out,
            _Json(rename) if style.format == "json" else _Console(stream, debug=debug),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


def _explain_exceptions() -> Callable[[Any, str, Any], Any]:
    """Tracebacks as records for programs and as text for people; neither with the values of variables."""
    import structlog

    as_records = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    as_text = structlog.processors.format_exc_info

    def explain(logger: Any, method: str, event: Any) -> Any:
        if not event.get("exc_info"):
            event.pop("exc_info", None)
            return event
        text = as_text(logger, method, dict(event)).get("exception")
        return {**as_records(logger, method, event), "traceback": text}

    return explain


class _Json:
    def __init__(self, rename: Callable[[Record], Record]) -> None:
        self._rename = rename

    def __call__(self, _logger: Any, _method: str, event: Any) -> str:
        return as_line(self._rename(event))


class _FileSink:
    """Writes every line to the file and hands it on. A file that cannot be written is said once."""

    def __init__(self, file: LogFile, rename: Callable[[Record], Record]) -> None:
        self._file = file
        self._rename = rename
        self._has_complained = False

    def __call__(self, logger: Any, _method: str, event: Any) -> Any:
        record = {key: value for key, value in event.items() if key != SHOWN}
        try:
            self._file.write(as_line(self._rename(record)))
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                message = f"{self._file.path}: {error.strerror}"
                complaint = {**record, "level": "warning", "event": "log.unwritten", "message": message}
                kept = ("timestamp", "level", "event", "run_id", "command", "message")
                logger.msg(as_line(self._rename({key: complaint[key] for key in kept if key in complaint})))
        return event


class _Console:
    """A log line for people: the time of day, the event, and what a person can use of the fields."""

    COLOURS: ClassVar[dict[str, str]] = {"info": "1", "debug": "2", "warning": "33", "error": "31", "critical": "31"}
    FOR_PROGRAMS = frozenset({"run_id", "exit_code", "backup_id", "bytes"})
    """Fields the result shows already, or that only a log collector needs; ``--debug`` shows them too."""

    def __init__(self, stream: TextIO, *, debug: bool) -> None:
        self._colours = stream.isatty()
        self._hidden = frozenset() if debug else self.FOR_PROGRAMS

    def __call__(self, _logger: Any, _method: str, event: Any) -> str:
        level, name = str(event.pop("level", "info")), event.pop("event", "")
        time, traceback = str(event.pop("timestamp", ""))[11:19], event.pop("traceback", None)
        event.pop("exception", None)
        fields = " ".join(
            f"{self._in('2', f'{key}=')}{value}" for key, value in event.items() if key not in self._hidden
        )
        colour = self.COLOURS.get(level, "0")
        words = (self._in("2", time), "" if level == "info" else self._in(colour, level), self._in(colour, str(name)))
        line = " ".join(part for part in (*words, fields) if part)
        return f"{line}\n{self._in('2', traceback)}" if traceback else line

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and text else text


def bind_run(**context: Any) -> None:
    """Add fields to every line of this run."""
    import structlog

    structlog.contextvars.bind_contextvars(**context)


@contextmanager
def request_context(**context: str) -> Iterator[None]:
    """Add fields to every line of one request, in whatever thread it is answered."""
    import structlog

    with structlog.contextvars.bound_contextvars(**context):
        yield


def get_logger() -> "FilteringBoundLogger":
    import structlog

    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
