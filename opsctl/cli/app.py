"""The application: its commands, a line each, and the only way in (`run`)."""

import json
import secrets
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from opsctl import __version__
from opsctl.cli import backup, catalog, demo, prune, restore, verify
from opsctl.cli.session import Body, command
from opsctl.errors import ExitCode
from opsctl.manifest import format_time

BACKUPS = "Backups"
OPERATION = "Operation"

COMMANDS: tuple[tuple[str, str, Body], ...] = (
    ("backup", BACKUPS, backup.backup),
    ("list", BACKUPS, catalog.list_backups),
    ("show", BACKUPS, catalog.show),
    ("verify", BACKUPS, verify.verify),
    ("restore", BACKUPS, restore.restore),
    ("export", BACKUPS, catalog.export),
    ("prune", BACKUPS, prune.prune),
    ("pin", BACKUPS, catalog.pin),
    ("unpin", BACKUPS, catalog.unpin),
    ("demo", OPERATION, demo.demo),
)

app = typer.Typer(
    name="opsctl",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opsctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def opsctl(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """PostgreSQL backups that are proven, restores that can be undone.

    Exit codes: 0 done, 3 done but needs attention, others failed: docs/exit-codes.md names each.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name, _panel, _body in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(command(_name, _body))


def run(arguments: list[str]) -> int:
    """Run opsctl with these arguments; the exit code. Every way out of the program goes through here."""
    try:
        return int(app(args=arguments, prog_name="opsctl", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _usage_error(arguments, error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)


def _usage_error(arguments: list[str], message: str) -> int:
    """A command line that could not be understood keeps the contract too: one line, a hint, one JSON document."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    names = {name for name, _, _ in COMMANDS}
    name = next((word for word in words if word in names), "opsctl")
    hint = f"`opsctl {name} --help` shows how." if name != "opsctl" else "`opsctl --help` shows how."
    if "--json" in words:
        now = format_time(datetime.now(UTC))
        document = {
            "schema": f"opsctl.{name}/1",
            "ok": False,
            "exit_code": int(ExitCode.USAGE),
            "run_id": secrets.token_hex(8),
            "started_at": now,
            "finished_at": now,
            "result": None,
            "error": {"code": "usage", "message": message, "hint": hint},
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stderr.write(f"Error: {message}\nHint:  {hint}\n")
    return int(ExitCode.USAGE)
