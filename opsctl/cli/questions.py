"""Questions that have an answer already: at a terminal somebody may give another one, elsewhere it is taken."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opsctl.cli.session import Session


class Questions:
    def __init__(self, session: "Session") -> None:
        self._session = session

    @property
    def are_asked(self) -> bool:
        return self._session.is_interactive

    def text(self, label: str, default: str) -> str:
        """A line; an empty one is the default."""
        if not self.are_asked:
            return default
        shown = f" [{default}]" if default else ""
        return self._session.ask(f"{label}{shown}:") or default

    def yes(self, label: str, *, default: bool) -> bool:
        if not self.are_asked:
            return default
        while True:
            answer = self._session.ask(f"{label} [{'Y/n' if default else 'y/N'}]:").lower()
            if answer in {"", "y", "yes", "n", "no"}:
                return answer.startswith("y") if answer else default

    def choice(self, label: str, choices: Sequence[str]) -> int:
        """Which of several, by its number; the first one by default. The only one is shown."""
        if not self.are_asked:
            return 0
        if len(choices) == 1:
            self._session.output.show(f"{label}: {choices[0]}")
            return 0
        self._session.output.show("\n".join(f"  {number}  {each}" for number, each in enumerate(choices, 1)))
        while True:
            answer = self._session.ask(f"{label} [1]:") or "1"
            if answer.isdecimal() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
