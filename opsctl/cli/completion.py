from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opsctl.cli.output import Outcome

if TYPE_CHECKING:
    from opsctl.cli.session import Session

Shell = Literal["bash", "zsh", "fish"]

ShellArgument = Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]

SHARE = Path(__file__).parents[1] / "share"
SCRIPTS: dict[str, Path] = {
    "bash": SHARE / "bash/opsctl",
    "zsh": SHARE / "zsh/_opsctl",
    "fish": SHARE / "fish/opsctl.fish",
}


def completion(session: "Session", shell: ShellArgument) -> Outcome:  # noqa: ARG001 - every command has one
    """Print the script that completes opsctl's command lines in a shell.

    Commands, options, backups' ids, databases, repositories, services, checks, scenarios, steps and incidents are
    completed, from files on this host: no server is asked.

    Example: [bold]opsctl completion bash > opsctl.bash[/bold]
    """
    script = SCRIPTS[shell].read_text(encoding="utf-8")
    return Outcome({"shell": shell, "script": script}, [script.rstrip("\n")])
