"""What a check is, and what it says: the records everything about `doctor` is made of."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from opsctl.checks.scope import Scope

Status = Literal["ok", "warn", "crit", "unknown", "skip"]

WORST_FIRST: tuple[Status, ...] = ("crit", "unknown", "warn", "ok")
"""``skip`` never counts."""


@dataclass(frozen=True)
class Thresholds:
    """From where on a value is a warning, and critical. ``falling``: small values are the bad ones."""

    warn: float | None = None
    crit: float | None = None
    falling: bool = False

    def judge(self, value: float) -> Status:
        if self.crit is not None and self._reaches(value, self.crit):
            return "crit"
        if self.warn is not None and self._reaches(value, self.warn):
            return "warn"
        return "ok"

    def _reaches(self, value: float, limit: float) -> bool:
        return value < limit if self.falling else value >= limit

    @property
    def contradict(self) -> bool:
        """Whether the warning would only come after the critical value."""
        if self.warn is None or self.crit is None:
            return False
        return self.warn < self.crit if self.falling else self.warn > self.crit


NO_THRESHOLDS = Thresholds()

NO_CONTAINER = "container"
"""The code of a failure that says no more than that a container does not run: what explains it says it better."""


@dataclass(frozen=True)
class ServerCommand:
    """A call of one of PostgreSQL's programs: a judge knows what to do, the run of checks knows at which server."""

    program: str
    arguments: str
    """Quoted for the shell."""
    database: str | None = None

    def __str__(self) -> str:
        return self.at(self.database)

    def at(self, connection: str | None) -> str:
        """The line for a shell. ``connection`` is a database's name or a connection string without anything secret."""
        where = ["-d", shlex.quote(connection)] if connection else []
        return " ".join((self.program, *where, self.arguments))


@dataclass(frozen=True)
class Remedy:
    """What to do: in words, as a command that can be copied, and which scenario of the runbook it is."""

    text: str
    command: str | ServerCommand | None = None
    """In a result always the line itself."""
    scenario: str | None = None


@dataclass(frozen=True)
class Finding:
    """What a check found at one target. ``code`` is a stable word for programs: ``refused``, ``blocked``."""

    status: Status
    message: str
    value: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    remedy: Remedy | None = None
    code: str | None = None


@dataclass(frozen=True)
class Target:
    """One thing a check looks at; the host as a whole has no name.

    ``within`` names other targets it lives in, with the kind of their checks where a name may be another's as well
    (``service:db``): a database its container's service, a repository its disk. A failure
    there explains a failure here.
    """

    name: str = ""
    within: tuple[str, ...] = ()


class Probe(Protocol):
    """Look at one target and judge it. What it raises makes the result ``unknown``."""

    def __call__(self, scope: "Scope", target: str, thresholds: Thresholds, /) -> Finding: ...


def whole_host(_scope: "Scope") -> Iterable[Target]:
    return [Target()]


@dataclass(frozen=True)
class Check:
    """One entry of the registry.

    ``targets`` names what there is to look at; nothing means that nothing is configured, which is ``skip``.
    ``after`` names checks that must not have failed at the same target, at one it is within, or at the whole host.
    ``explained_by`` names checks, or their prefix, whose failure at a target this one is within is the reason of a
    failure here: their alarm is folded into this one. ``after_one`` names checks of which one that has not failed, at
    a target this one is within, is enough: a database is in several repositories. ``lane`` puts checks of one target
    into one thread, one after the other: those of a database share its session.
    """

    id: str
    title: str
    probe: Probe
    reads: str
    """What it looks at."""
    why: str
    """Why that matters, and where the thresholds come from."""
    fix: str
    grant: str = ""
    """What the login needs, in words; nothing when everybody may."""
    thresholds: Thresholds = NO_THRESHOLDS
    unit: str | None = None
    """``s``, ``%``, ``B``, or nothing for a number of things."""
    after: tuple[str, ...] = ()
    after_one: tuple[str, ...] = ()
    explained_by: tuple[str, ...] = ()
    targets: Callable[["Scope"], Iterable[Target]] = whole_host
    not_configured: str = "Nothing of the kind is configured."
    lane: str | None = None
    timeout_seconds: float = 5
    opt_in: bool = False


@dataclass(frozen=True)
class CheckResult:
    """What a check came to at one target. ``because`` names the failed check that made this one ``skip``."""

    id: str
    title: str
    status: Status
    message: str
    target: str | None = None
    code: str | None = None
    value: float | None = None
    unit: str | None = None
    warn: float | None = None
    crit: float | None = None
    falling: bool = False
    """Whether what is below ``warn`` and ``crit`` is bad, and not what is above."""
    because: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    remedy: Remedy | None = None
    duration_seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether nothing that depends on it can be trusted."""
        return self.status in {"crit", "unknown"}

    @property
    def name(self) -> str:
        """How a person names it: ``db.connect``, or ``db.connect (billing)``."""
        return f"{self.id} ({self.target})" if self.target else self.id
