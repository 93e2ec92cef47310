"""Structured logs on stderr: JSON lines, or readable lines on a terminal."""

import logging
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO

from opsctl.telemetry.redact import Redactor

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LogFormat = Literal["json", "console"]


def configure_logs(*, format: LogFormat, quiet: bool, debug: bool, redactor: Redactor, stream: TextIO) -> None:  # noqa: A002
    """Set structlog up for this run. ``quiet`` keeps warnings and errors only."""
    import structlog

    def redact(_logger: Any, _method: str, event: Any) -> Any:
        return redactor.deep(event)

    no_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    console = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False) if format == "json" else console
    tracebacks = [structlog.processors.ExceptionRenderer(no_locals)] if format == "json" else []
    level = logging.WARNING if quiet else logging.DEBUG if debug else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tracebacks,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


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


def stderr() -> TextIO:
    return sys.stderr
