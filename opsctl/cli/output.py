"""What a run prints: the result on stdout, and on stderr what accompanies it. Text for people, or one JSON document."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from opsctl.amounts import age, counted, duration, size
from opsctl.cli.table import PlainTable
from opsctl.documents import envelope
from opsctl.errors import DoctorExit, ExitCode, Interrupted, OpsctlError
from opsctl.telemetry.redact import Redactor

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

    from opsctl.stream import Advance

__all__ = ["PlainTable", "age", "counted", "duration", "size"]
"""The commands find tables and the words for amounts where they find the rest of what they print."""


@dataclass(frozen=True)
class Outcome:
    """What a command came to: the result for programs, its text for people, and the exit code.

    ``error`` is for a run that failed and still has something to tell; its exit code wins over ``exit_code``.
    """

    result: Mapping[str, Any] | None
    text: Iterable["RenderableType"] = ()
    exit_code: ExitCode | DoctorExit = ExitCode.DONE
    error: OpsctlError | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """What the run's last log line says besides: database, backup_id …"""

    @property
    def code(self) -> ExitCode | DoctorExit:
        return self.error.exit_code if self.error else self.exit_code

    @property
    def done(self) -> bool:
        return self.code == ExitCode.DONE


class Later(Mapping[str, Any]):
    """A result that is made when a program asks for it; for people thousands of records are made in vain."""

    def __init__(self, make: Callable[[], Mapping[str, Any]]) -> None:
        self._made = cache(make)

    def __getitem__(self, key: str) -> Any:
        return self._made()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())


@dataclass(frozen=True)
class Run:
    """One run of a command, as its output names it."""

    command: str
    id: str
    started_at: datetime
    finished_at: datetime


class Output(Protocol):
    def finish(self, run: Run, outcome: Outcome) -> None:
        """Print the result, and the error if there is one; the last thing a run does."""
        ...

    def start_progress(self, label: str, total: int | None) -> "Advance":
        """Show that ``label`` advances, in bytes; on a terminal only."""
        ...

    def stop_progress(self) -> None: ...

    def show(self, renderable: "RenderableType") -> None:
        """Show what a person must see before the result, on stderr."""
        ...

    def line(self, record: dict[str, Any], renderable: "RenderableType") -> None:
        """Print one line, on stdout, of a result that goes on until somebody ends it."""
        ...


class TextOutput:
    """For people: Rich on a terminal, plain text in a pipe."""

    def __init__(self, redactor: Redactor, *, quiet: bool) -> None:
        self._redactor = redactor
        self._quiet = quiet
        self._progress: Progress | None = None

    def finish(self, run: Run, outcome: Outcome) -> None:  # noqa: ARG002 - the other output needs the run
        self.stop_progress()
        if outcome.text and not (self._quiet and outcome.done):
            console = self._console(sys.stdout)
            for renderable in outcome.text:
                # Rich itself forgets a text's no_wrap: lines to be copied elsewhere would get breaks in them.
                is_verbatim = getattr(renderable, "no_wrap", None) is True
                console.print(renderable, soft_wrap=True if is_verbatim else None)
        if outcome.error is not None and sys.stderr.isatty():  # elsewhere the log line says it
            self._show_error(outcome.error)

    def start_progress(self, label: str, total: int | None) -> "Advance":
        if self._quiet or not sys.stderr.isatty():
            return _nothing
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            """Bytes per second, in the units of everything else here (Rich's own column has decimal ones)."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{size(int(speed))}/s" if speed else "?")

        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                DownloadColumn(binary_units=True),
                Rate(),
                TimeRemainingColumn(compact=True),
            )
            self._progress = Progress(*columns, console=self._console(sys.stderr), transient=True, expand=True)
            self._progress.start()
        progress = self._progress
        task = progress.add_task(label, total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        return advance

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show(self, renderable: "RenderableType") -> None:
        self.stop_progress()
        self._console(sys.stderr).print(renderable)

    def line(self, record: dict[str, Any], renderable: "RenderableType") -> None:  # noqa: ARG002
        self._console(sys.stdout).print(renderable)
        sys.stdout.flush()

    def _show_error(self, error: OpsctlError) -> None:
        from rich.text import Text

        text = Text.assemble(("Error: ", "bold red"), error.message)
        if error.hint:
            text.append("\nHint:  ", "bold")
            text.append(error.hint)
        self._console(sys.stderr).print(text)

    def _console(self, stream: TextIO) -> "Console":
        from rich.console import Console

        # A pipe has no width: wide enough that no table is cut for the program that reads it.
        width = shutil.get_terminal_size().columns if stream.isatty() else 160
        sink = cast("IO[str]", _RedactedStream(stream, self._redactor))
        return Console(
            file=sink, highlight=False, soft_wrap=not stream.isatty(), width=width, emoji=False, markup=False
        )


class _RedactedStream:
    """A stream that masks secrets as the last step before the bytes leave."""

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        self._stream = stream
        self._redactor = redactor
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        return self._stream.write(self._redactor.text(text))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class JsonOutput:
    """For programs: exactly one document on stdout, on failure too."""

    def __init__(self, redactor: Redactor, *, indent: int | None = 2) -> None:
        self._redactor = redactor
        self._indent = indent
        """``None`` puts each document on a line of its own."""

    def finish(self, run: Run, outcome: Outcome) -> None:
        self._print(self._document(run, outcome))

    def _document(self, run: Run, outcome: Outcome) -> dict[str, Any]:
        return envelope(
            run.command,
            outcome.result,
            run_id=run.id,
            started_at=run.started_at,
            finished_at=run.finished_at,
            exit_code=int(outcome.code),
            error=outcome.error,
        )

    def _print(self, document: dict[str, Any]) -> None:
        text = json.dumps(self._redactor.deep(document), indent=self._indent, ensure_ascii=False)
        sys.stdout.write(text.encode("utf-8", "replace").decode() + "\n")
        sys.stdout.flush()

    def start_progress(self, label: str, total: int | None) -> "Advance":  # noqa: ARG002
        return _nothing

    def stop_progress(self) -> None:
        return

    def show(self, renderable: "RenderableType") -> None:
        """A program reads the result; nobody is there to be shown anything."""

    def line(self, record: dict[str, Any], renderable: "RenderableType") -> None:  # noqa: ARG002
        self._print(record)


class JsonLinesOutput(JsonOutput):
    """For programs that read a result without an end: one JSON object a line, and a last one only for a failure."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__(redactor, indent=None)

    def finish(self, run: Run, outcome: Outcome) -> None:
        if outcome.error is not None and not isinstance(outcome.error, Interrupted):
            super().finish(run, outcome)


def _nothing(_count: int) -> None:
    return
