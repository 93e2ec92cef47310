from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.output import Outcome
from opsctl.errors import ExitCode, RepositoryUnreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.repository_check import Examined

Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Configured repositories; all of them by default.")
]
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def check(session: "Session", names: Names = None) -> Outcome:
    """Try everything opsctl does with a repository, and look for rules that would eat backups. Nothing is left there.

    Example: [bold]opsctl repository check[/bold]
    """
    from opsctl.repository_check import examine

    examined = [examine(session.repositories[name], clock=session.clock) for name in _chosen(session, names)]
    for each in examined:
        for trial in each.trials:
            if trial.status in {"warn", "fail"}:
                log = session.log().error if trial.status == "fail" else session.log().warning
                log(f"repository.{trial.id}", repository=each.name, message=trial.message)
    result = {"repositories": [_entry(each) for each in examined]}
    text = [line for each in examined for line in _described(each)]
    unusable = [each for each in examined if not each.usable]
    if unusable:
        trial = next(trial for trial in unusable[0].trials if trial.vital and trial.status == "fail")
        return Outcome(result, text, error=RepositoryUnreachable(trial.message, hint=trial.hint))
    well = all(each.status in {"ok", "skip"} for each in examined)
    return Outcome(result, text, ExitCode.DONE if well else ExitCode.ATTENTION)


def _chosen(session: "Session", names: list[str] | None) -> list[str]:
    return [session.repository(name).name for name in dict.fromkeys(names or session.repositories)]


def _entry(examined: "Examined") -> dict[str, Any]:
    checks = [
        {"id": trial.id, "status": trial.status, "message": trial.message, "hint": trial.hint}
        for trial in examined.trials
    ]
    return {
        "name": examined.name,
        "url": examined.url,
        "status": examined.status,
        "usable": examined.usable,
        "checks": checks,
    }


def _described(examined: "Examined") -> list["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for trial in examined.trials:
        message = Text(trial.message)
        if trial.hint and trial.status != "ok":
            message.append(f" {trial.hint}", style="dim")
        table.add_row(Text(trial.status, style=STYLES[trial.status]), trial.id, message)
    return [Text(f"{examined.name}: {examined.url}", style="bold"), table, ""]
