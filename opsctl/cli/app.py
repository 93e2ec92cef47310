"""The application: its commands, a line each, and the only way in (`run`)."""

from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from opsctl import __version__
from opsctl.cli import (
    backup,
    bundle,
    catalog,
    completion,
    config,
    cron,
    demo,
    diff,
    doctor,
    explain,
    history,
    import_,
    incident,
    init,
    keygen,
    metrics,
    notify,
    prune,
    repository,
    restore,
    run_scheduled,
    runbook,
    runbook_run,
    serve,
    services,
    sync,
    verify,
)
from opsctl.cli.boundary import Body, Execute, command, run_command
from opsctl.cli.session import Options, Session
from opsctl.errors import ExitCode, UsageError

BACKUPS = "Backups"
INCIDENTS = "Incidents"
OPERATION = "Operation"

COMMANDS: tuple[tuple[str, str, Body], ...] = (
    ("backup", BACKUPS, backup.backup),
    ("list", BACKUPS, catalog.list_backups),
    ("show", BACKUPS, catalog.show),
    ("diff", BACKUPS, diff.diff),
    ("verify", BACKUPS, verify.verify),
    ("drill", BACKUPS, verify.drill),
    ("restore", BACKUPS, restore.restore),
    ("export", BACKUPS, catalog.export),
    ("import", BACKUPS, import_.import_dumps),
    ("sync", BACKUPS, sync.sync),
    ("prune", BACKUPS, prune.prune),
    ("pin", BACKUPS, catalog.pin),
    ("unpin", BACKUPS, catalog.unpin),
    ("keygen", BACKUPS, keygen.keygen),
    ("repository check", BACKUPS, repository.check),
    ("doctor", INCIDENTS, doctor.doctor),
    ("explain", INCIDENTS, explain.explain),
    ("services", INCIDENTS, services.services),
    ("logs", INCIDENTS, services.logs),
    ("restart", INCIDENTS, services.restart),
    ("incident open", INCIDENTS, incident.open_incident),
    ("incident note", INCIDENTS, incident.note),
    ("incident list", INCIDENTS, incident.list_incidents),
    ("incident show", INCIDENTS, incident.show),
    ("incident verify", INCIDENTS, incident.verify),
    ("incident export", INCIDENTS, incident.export),
    ("incident close", INCIDENTS, incident.close),
    ("bundle", INCIDENTS, bundle.bundle),
    ("runbook list", INCIDENTS, runbook.list_scenarios),
    ("runbook show", INCIDENTS, runbook.show),
    ("runbook lint", INCIDENTS, runbook.lint),
    ("runbook test", INCIDENTS, runbook.try_out),
    ("runbook run", INCIDENTS, runbook_run.run),
    ("init", OPERATION, init.init),
    ("config show", OPERATION, config.show),
    ("config validate", OPERATION, config.validate),
    ("config schema", OPERATION, config.schema),
    ("completion", OPERATION, completion.completion),
    ("cron show", OPERATION, cron.show),
    ("cron install", OPERATION, cron.install),
    ("cron remove", OPERATION, cron.remove),
    ("cron check", OPERATION, cron.check),
    ("cron run", OPERATION, cron.run),
    ("run-scheduled", OPERATION, run_scheduled.run_scheduled),
    ("history", OPERATION, history.history),
    ("metrics", OPERATION, metrics.metrics),
    ("notify test", OPERATION, notify.test),
    ("serve", OPERATION, serve.serve),
    ("demo", OPERATION, demo.demo),
)

GROUPS = {
    "config": "Look at the configuration: what is in force, what is wrong with it, what may stand in it.",
    "cron": "Have the schedule of the configuration run by cron or systemd.",
    "incident": "Record what happens: timelines whose every byte is accounted for.",
    "repository": "Look after the places where backups live.",
    "notify": "Look after who is told of failures.",
    "runbook": "What to do when something is wrong, from a Markdown file that runs.",
}
"""What the first word of commands of two words stands for."""

HELP = """PostgreSQL backups that are proven, restores that can be undone.

Exit codes: 0 done, 1 failed, 2 usage, 3 done but needs attention, 10 configuration, 11 locked, \
12 database unreachable, 13 repository unreachable, 14 no such backup, 15 backup damaged, 16 refused, 70 bug, \
130 Ctrl-C, 143 SIGTERM. doctor: 0 ok, 1 warn, 2 crit, 3 unknown.
"""


def _typer(name: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        # Typer's own options of the program load pydantic to find out that they were not given.
        add_help_option=False,
        add_completion=False,
    )


def _print_version(*, as_json: bool) -> None:
    if not as_json:
        typer.echo(f"opsctl {__version__}")
        return
    import platform

    from opsctl.cli.output import Outcome

    session = Session("version", Options(json=True))
    result = {"version": __version__, "python": platform.python_version(), "system": platform.platform()}
    session.output.finish(session.run(), Outcome(result))


def _print_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


HelpOption = Annotated[
    bool, typer.Option("--help", "-h", help="Show this message and exit.", callback=_print_help, is_eager=True)
]


def opsctl(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print one JSON document.")] = False,
    help_wanted: HelpOption = False,  # noqa: ARG001 - its callback does it
) -> None:
    if version:
        _print_version(as_json=as_json)
        raise typer.Exit
    if as_json:
        raise typer.TyperException("--json stands after the command.")
    _show_help_alone(context)


def _show_help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def new_app(execute: Execute, *, about: str | None = None) -> typer.Typer:
    """The application: every command, run by ``execute``.

    ``about`` is what a command line is about, if that is known: of the other commands only their help is in it then.
    Typer takes a while to look at the options of all of them.
    """
    application = _typer("opsctl")
    application.callback(invoke_without_command=True, help=HELP)(opsctl)
    groups: dict[str, typer.Typer] = {}
    for name, panel, body in COMMANDS:
        first, _, second = name.partition(" ")
        if second and first not in groups:
            groups[first] = _new_group(application, first, panel)
        parent = groups[first] if second else application
        function = command(name, body, execute) if about in {None, name} else _only_named(body)
        parent.command(second or first, rich_help_panel=None if second else panel)(function)
    return application


def _only_named(body: Body) -> Callable[[], None]:
    def unasked() -> None:
        raise AssertionError("another command was asked for")

    unasked.__doc__ = body.__doc__
    return unasked


def _new_group(application: typer.Typer, name: str, panel: str) -> typer.Typer:
    """The first word of commands of two: alone it shows what there is, as ``opsctl`` does."""
    group = _typer(name)

    def alone(context: typer.Context, help_wanted: HelpOption = False) -> None:  # noqa: ARG001
        _show_help_alone(context)

    group.callback(invoke_without_command=True, help=GROUPS[name])(alone)
    application.add_typer(group, rich_help_panel=panel)
    return group


def run(arguments: list[str]) -> int:
    """Run opsctl with these arguments; the exit code. Every way out of the program goes through here."""
    app = new_app(run_command, about=meant(arguments))
    try:
        return int(app(args=arguments, prog_name="opsctl", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _usage_error(arguments, error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)


def _usage_error(arguments: list[str], message: str) -> int:
    """A command line that could not be understood keeps the contract too: one error, a hint, one JSON document."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    name = meant(words)
    hint = f"`opsctl {name} --help` shows how." if name != "opsctl" else "`opsctl --help` shows how."

    def refuse(session: Session) -> NoReturn:
        if name == "doctor":
            doctor.choose_output_from(session, words)
        raise UsageError(message, hint=hint)

    return run_command(name, refuse, Options(json="--json" in words), {})


def meant(words: list[str]) -> str:
    """The command, or the group of commands, that a command line is about, as far as it can be told."""
    names = {*GROUPS, *(name for name, _, _ in COMMANDS)}
    meant = ""
    for word in words:
        longer = f"{meant} {word}".strip()
        meant = longer if longer in names else meant
    return meant or "opsctl"
