"""The runbook: a Markdown file whose sections are scenarios and whose marked fences are steps. Its records."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from opsctl.errors import ConfigurationError, UsageError

Effect = Literal["observe", "change", "danger", "manual"]

EFFECTS: tuple[Effect, ...] = ("observe", "change", "danger")
"""What commands may do, the harmless first."""

VERIFY_SECONDS = 60.0
TIMEOUT_SECONDS: dict[Effect, float | None] = {"observe": 60.0, "change": 600.0, "danger": None, "manual": None}
"""How long a step's commands may take unless it says so: a restore takes as long as it takes."""


@dataclass(frozen=True)
class Command:
    """One line of a step. A word ``$NAME`` stands for the value of that parameter, as one word."""

    words: tuple[str, ...]
    text: str
    line: int = 0

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in map(parameter_in, self.words) if name))

    @property
    def is_opsctl(self) -> bool:
        return self.words[0] == "opsctl"


@dataclass(frozen=True)
class Condition:
    """``CHECK=STATUS`` or ``CHECK!=STATUS``: what has to be so for a step to be needed."""

    check: str
    status: str
    is_negated: bool

    def holds(self, status: str) -> bool:
        return (status == self.status) != self.is_negated

    def __str__(self) -> str:
        return f"{self.check}{'!=' if self.is_negated else '='}{self.status}"


@dataclass(frozen=True)
class Step:
    """A fence that runs: its commands, what has to be so before, and what has to be green afterwards."""

    id: str
    effect: Effect
    text: str
    line: int = 0
    commands: tuple[Command, ...] = ()
    conditions: tuple[Condition, ...] = ()
    verify: tuple[str, ...] = ()
    undo: Command | None = None
    target: str | None = None
    timeout_seconds: float | None = None
    wait_seconds: float = VERIFY_SECONDS
    is_named: bool = True
    """Whether it has an id of its own; another's is its number, which changes with the file."""

    @property
    def changes(self) -> bool:
        return self.effect in {"change", "danger"}

    @property
    def checks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(each.check for each in self.conditions), *self.verify]))

    @property
    def digest(self) -> str:
        """What tells whether a step is still the one that ran: everything but its place in the file."""
        words = [each.words for each in self.commands]
        undo = self.undo.words if self.undo else None
        told = [self.id, self.effect, words or self.text, [*map(str, self.conditions)], self.verify, undo, self.target]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Problem:
    """Something that is not right, at a line of the file; ``scenario`` is ``None`` where it concerns the whole."""

    line: int
    message: str
    scenario: str | None = None


@dataclass(frozen=True)
class Scenario:
    """A ``##`` section with steps. ``triggers`` are the checks whose failure it is for."""

    id: str
    title: str
    line: int
    text: str
    steps: tuple[Step, ...] = ()
    triggers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    owner: str | None = None

    def step(self, name: str) -> Step | None:
        return next((each for each in self.steps if each.id == name), None)


@dataclass(frozen=True)
class Runbook:
    source: str
    text: str
    scenarios: tuple[Scenario, ...] = ()
    problems: tuple[Problem, ...] = ()
    anchors: frozenset[str] = field(default_factory=frozenset)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def scenario(self, name: str) -> Scenario:
        """The scenario of that id, alias or title. Raises UsageError."""
        for each in self.scenarios:
            if name in {each.id, each.title, *each.aliases}:
                return each
        raise UsageError(f"{self.source} has no scenario {name!r}.", hint=self._nearest(name))

    def _nearest(self, name: str) -> str:
        from opsctl.settings import nearest

        known = [word for each in self.scenarios for word in (each.id, *each.aliases)]
        return nearest(name, known) or "`opsctl runbook list` shows what there is."

    def require_sound(self, scenario: Scenario, problems: Iterable[Problem]) -> None:
        """Nothing runs of a scenario in which something is wrong. Raises ConfigurationError."""
        concerned = [each for each in problems if each.scenario in {None, scenario.id}]
        if concerned:
            first = concerned[0]
            more = f" And {len(concerned) - 1} more." if len(concerned) > 1 else ""
            raise ConfigurationError(
                f"{self.source}:{first.line}: {first.message}{more}", hint="`opsctl runbook lint` shows them all."
            )


def parameter_in(word: str) -> str | None:
    """The name of the parameter that a word stands for, if it does."""
    name = word[1:].removeprefix("{").removesuffix("}") if word.startswith("$") else ""
    return name if name and word in {f"${name}", f"${{{name}}}"} and name.isidentifier() else None
