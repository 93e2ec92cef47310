import json
import sys
from typing import TYPE_CHECKING, Any

from opsctl.cli.output import Outcome
from opsctl.errors import OpsctlError

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.demo import Demo


def demo(session: "Session") -> Outcome:
    """Back up, damage, restore and undo, on a PostgreSQL server of its own. Leaves nothing running.

    Example: [bold]opsctl demo[/bold]
    """
    from opsctl.config import load_config
    from opsctl.demo import running_demo

    config = load_config(session.options.config)
    with running_demo(search_path=config.search_path, variables=config.variables) as running:
        story = _Story(session, running)
        story.say(f"PostgreSQL {running.version} with a small SaaS: companies, users, messages, events.")
        before = running.contents()
        story.tables(before)
        story.command("backup")
        story.command("list")
        story.say("Now something goes wrong:")
        for statement in running.damage():
            story.say(f"  {statement};")
        damaged = running.contents()
        story.tables(damaged)
        story.command("restore", "latest", "--yes", "saasdb")
        restored = running.contents()
        story.tables(restored)
        story.require(restored == before, "every row is back, byte for byte", "the restored rows differ")
        story.command("restore", "--undo", "--yes", "saasdb")
        story.require(running.contents() == damaged, "the undo brought the damaged state back", "the undo differs")
    story.say("The server, its data and the backups of this demo are gone again.")
    story.say("Next: DATABASE_URL=postgresql://user@host/database opsctl backup")
    return Outcome({"steps": story.steps, "tables": len(before), "restored": True, "undone": True})


class _Story:
    """Tells what happens, and runs the real program in between."""

    def __init__(self, session: "Session", running: "Demo") -> None:
        self._told = not (session.options.json or session.options.quiet)
        self._running = running
        self.steps: list[dict[str, Any]] = []

    def say(self, text: str, style: str | None = None) -> None:
        if self._told:
            from rich.console import Console

            Console(file=sys.stdout, highlight=False, markup=False).print(text, style=style)
            sys.stdout.flush()

    def command(self, *arguments: str) -> None:
        """Run ``opsctl`` with these arguments; its own output is the demo's."""
        self.say(f"\n$ opsctl {' '.join(arguments)}", style="bold cyan")
        if self._told:
            done = self._running.run(*arguments, capture=False)
        else:
            done = self._running.run(*arguments, "--json", capture=True)
        step: dict[str, Any] = {"command": list(arguments), "exit_code": done.returncode}
        if done.stdout:
            step["result"] = json.loads(done.stdout)["result"]
        self.steps.append(step)
        self.say("")
        if done.returncode != 0:
            raise OpsctlError(f"opsctl {arguments[0]} ended with exit code {done.returncode}.", hint=done.stderr)

    def tables(self, contents: dict[str, tuple[int | None, str | None]]) -> None:
        rows = ", ".join(f"{name} {count:,}" for name, (count, _) in contents.items())
        self.say(f"  rows: {rows}")

    def require(self, truth: bool, good: str, bad: str) -> None:
        if not truth:
            raise OpsctlError(f"The demo failed: {bad}.")
        self.say(f"  ✔ {good}", style="green")
