"""Structured logs on stderr: JSON lines, or readable lines on a terminal."""

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TextIO

from opsctl.telemetry.recent import Recent
from opsctl.telemetry.redact import Redactor

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LogFormat = Literal["json", "console"]


def configure_logs(
    *,
    format: LogFormat,  # noqa: A002
    quiet: bool,
    debug: bool,
    redactor: Redactor,
    recent: Recent,
    stream: TextIO,
) -> None:
    """Set structlog up for this run. ``quiet`` prints warnings and errors only; ``recent`` sees the others, too."""
    import structlog

    def redact(_logger: Any, _method: str, event: Any) -> Any:
        return redactor.deep(event)

    no_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    as_json = format == "json"
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False) if as_json else _Console(stream, debug=debug)
    tracebacks = structlog.processors.ExceptionRenderer(no_locals) if as_json else structlog.processors.format_exc_info

    def leave_out(_logger: Any, method: str, event: Any) -> Any:
        if quiet and method in {"debug", "info"}:
            raise structlog.DropEvent
        return event

    level = logging.DEBUG if debug else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            tracebacks,
            redact,
            recent,
            leave_out,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


class _Console:
    """A log line for people: the time of day, the event, and what a person can use of the fields."""

    STYLES: ClassVar[dict[str, str]] = {"info": "2", "debug": "2", "warning": "33", "error": "31", "critical": "31"}
    FOR_PROGRAMS = frozenset({"run_id", "exit_code", "backup_id", "bytes"})
    """Fields the result shows already, or that only a log collector needs; ``--debug`` shows them too."""

    def __init__(self, stream: TextIO, *, debug: bool) -> None:
        self._colours = stream.isatty()
        self._hidden = frozenset() if debug else self.FOR_PROGRAMS

    def __call__(self, _logger: Any, _method: str, event: Any) -> str:
        level, name = str(event.pop("level", "info")), event.pop("event", "")
        time, traceback = str(event.pop("timestamp", ""))[11:19], event.pop("exception", None)
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in self._hidden)
        line = " ".join(part for part in (time, "" if level == "info" else level, str(name), fields) if part)
        if traceback:
            line = f"{line}\n{traceback}"
        return f"\x1b[{self.STYLES.get(level, '0')}m{line}\x1b[0m" if self._colours else line


def bind_run(**context: str) -> None:
    """Add fields to every line of this run."""
    import structlog

    structlog.contextvars.bind_contextvars(**context)


def get_logger() -> "FilteringBoundLogger":
    import structlog

    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def default_format(stream: TextIO) -> LogFormat:
    return "console" if stream.isatty() else "json"
