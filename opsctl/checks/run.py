"""Checks run side by side, each after those it depends on, all of them within a fixed time whatever hangs."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread

from opsctl.checks.check import (
    NO_CONTAINER,
    NO_THRESHOLDS,
    Check,
    CheckResult,
    Finding,
    Remedy,
    ServerCommand,
    Target,
    Thresholds,
)
from opsctl.checks.scope import Scope
from opsctl.errors import DatabaseUnreachable, NotPermitted, OpsctlError
from opsctl.telemetry.logs import get_logger

RUN_SECONDS = 12.0

SESSIONS = 3
"""Lanes open at a time, each of them a session: however many databases a server has, it is spared."""

Answer = Finding | Exception


@dataclass(eq=False)
class Unit:
    """One check at one target: what is run, and then what it came to."""

    check: Check
    target: Target
    thresholds: Thresholds = NO_THRESHOLDS
    result: CheckResult | None = None
    root: "Unit | None" = None
    """The failed one this was skipped because of."""
    started: float = 0.0

    @property
    def lane(self) -> tuple[str, str] | None:
        return (self.check.lane, self.target.name) if self.check.lane else None

    def is_after(self, other: "Unit") -> bool:
        within = self._is_within(other)
        same = within or other.target.name in {self.target.name, ""}
        return (same and other.check.id in self.check.after) or (within and other.check.id in self.check.after_one)

    def may_be_explained_by(self, other: "Unit") -> bool:
        named = any(other.check.id == each or other.check.id.startswith(f"{each}.") for each in self.check.explained_by)
        return named and self._is_within(other)

    def _is_within(self, other: "Unit") -> bool:
        """Whether this target lives in the other's; a kind before a name tells a database from a service called so."""
        kind = other.check.id.partition(".")[0]
        return not {other.target.name, f"{kind}:{other.target.name}"}.isdisjoint(self.target.within)

    def stopped_by(self, ancestors: Sequence["Unit"]) -> "Unit | None":
        """The failed one at the root of what this cannot run after."""
        failed = [each for each in ancestors if _blocks(each)]
        one_is_left = any(each.check.id in self.check.after_one and each not in failed for each in ancestors)
        stopping = (each for each in failed if not (one_is_left and each.check.id in self.check.after_one))
        return next((each.root or each for each in stopping), None)


def list_units(checks: Iterable[Check], scope: Scope, thresholds: Mapping[str, Thresholds]) -> list[Unit]:
    """Every check with every target it has; one without targets is there too, skipped."""
    units = []
    for check in checks:
        limits = thresholds.get(check.id, check.thresholds)
        try:
            targets = list(check.targets(scope))
        except OpsctlError as error:
            units.append(_answered(Unit(check, Target(), limits), error, 0.0))
            continue
        units += [Unit(check, target, limits) for target in targets]
        if not targets:
            units.append(_skipped(Unit(check, Target(), limits), check.not_configured))
    return units


def run_checks(units: Sequence[Unit], scope: Scope, *, run_seconds: float = RUN_SECONDS) -> list[CheckResult]:
    """Run them; a result for each, in the same order. Ends within ``run_seconds`` even if every one hangs."""
    run = _Run(units, scope, run_seconds)
    try:
        run.work()
    finally:
        scope.close(but_for={lane[1] for lane in run.broken})
    scope.samples.save()
    _fold(units)
    return [unit.result for unit in units if unit.result]


class _Run:
    """One run: what waits, what is under way, which lanes hang."""

    def __init__(self, units: Sequence[Unit], scope: Scope, run_seconds: float) -> None:
        self._units = units
        self._scope = scope
        self._ends_at = time.monotonic() + run_seconds
        self._waiting = [unit for unit in units if unit.result is None]
        self._running: list[Unit] = []
        self._answers: SimpleQueue[tuple[Unit, Answer]] = SimpleQueue()
        self.broken: dict[tuple[str, str], Unit] = {}
        """Lanes whose thread hangs or whose session is lost, with the unit it happened to."""
        self._open: set[tuple[str, str]] = set()
        """Lanes that have begun and are not through."""

    def work(self) -> None:
        while True:
            self._start_what_can()
            if not self._running:
                return
            try:
                unit, answer = self._answers.get(timeout=max(0.0, self._next_deadline() - time.monotonic()))
            except Empty:
                self._give_up_on_the_late()
            else:
                if unit.result is None:  # else it was given up on
                    self._finish(unit, answer)

    def _start_what_can(self) -> None:
        """Start what waits for nothing any more; what cannot run any more is skipped, and so what waits for that."""
        settled = True
        while settled:
            settled = False
            self._close_lanes()
            for unit in list(self._waiting):
                ancestors = [each for each in self._units if unit.is_after(each)]
                root = unit.stopped_by(ancestors) or (self.broken.get(unit.lane) if unit.lane else None)
                if root is not None:
                    unit.root = root
                    _skipped(unit, f"Not looked at: {_name(root)} failed.", because=root.check.id)
                    settled = True
                elif any(each.result is None for each in ancestors) or self._is_busy(unit):
                    continue
                elif time.monotonic() >= self._ends_at:
                    _answered(unit, OpsctlError("The time of the run was over before its turn came."), 0.0)
                    settled = True
                else:
                    self._start(unit)
                self._waiting.remove(unit)

    def _close_lanes(self) -> None:
        """End the session of each lane that is through, so that the next one may begin."""
        under_way = {each.lane for each in (*self._waiting, *self._running)}
        for lane in self._open - under_way:
            self._open.remove(lane)
            if lane not in self.broken:
                self._scope.end_session(lane[1])

    def _is_busy(self, unit: Unit) -> bool:
        """Whether another check of its lane runs, or too many lanes are open for one more."""
        if unit.lane is None:
            return False
        if unit.lane in self._open:
            return any(each.lane == unit.lane for each in self._running)
        return len(self._open) >= SESSIONS

    def _start(self, unit: Unit) -> None:
        unit.started = time.monotonic()
        self._running.append(unit)
        if unit.lane is not None:
            self._open.add(unit.lane)

        def run() -> None:
            answer: Answer
            try:
                answer = unit.check.probe(self._scope, unit.target.name, unit.thresholds)
            except Exception as error:  # noqa: BLE001 - a check never vanishes: what it raises is its result
                answer = error
            self._answers.put((unit, answer))

        # A daemon: one that hangs in a server that does not answer must not keep the program alive.
        Thread(target=run, name=_name(unit), daemon=True).start()

    def _next_deadline(self) -> float:
        return min(self._ends_at, *(each.started + each.check.timeout_seconds for each in self._running))

    def _give_up_on_the_late(self) -> None:
        now = time.monotonic()
        for unit in list(self._running):
            if now >= min(self._ends_at, unit.started + unit.check.timeout_seconds):
                self._finish(unit, OpsctlError(f"No answer within {now - unit.started:.0f} s."), hangs=True)

    def _finish(self, unit: Unit, answer: Answer, *, hangs: bool = False) -> None:
        self._running.remove(unit)
        _answered(unit, self._addressed(unit, answer), time.monotonic() - unit.started)
        if unit.lane is not None and (hangs or isinstance(answer, DatabaseUnreachable)):
            self.broken[unit.lane] = unit

    def _addressed(self, unit: Unit, answer: Answer) -> Answer:
        """With the server in the remedy's command: a bare psql may reach another one."""
        remedy = answer.remedy if isinstance(answer, Finding) else None
        if not isinstance(answer, Finding) or remedy is None or not isinstance(remedy.command, ServerCommand):
            return answer
        server = self._scope.server(unit.target.name)
        line = remedy.command.at(server.public_conninfo(remedy.command.database, is_complete=True))
        return replace(answer, remedy=replace(remedy, command=line))


def _blocks(unit: Unit) -> bool:
    return unit.result is not None and (unit.result.failed or unit.root is not None)


def _name(unit: Unit) -> str:
    return f"{unit.check.id} ({unit.target.name})" if unit.target.name else unit.check.id


def _answered(unit: Unit, answer: Answer, seconds: float) -> Unit:
    finding = answer if isinstance(answer, Finding) else _unknown(unit.check, answer)
    check, thresholds = unit.check, unit.thresholds
    remedy = finding.remedy or (Remedy(check.fix) if finding.status in {"warn", "crit"} else None)
    unit.result = CheckResult(
        id=check.id,
        title=check.title,
        status=finding.status,
        message=finding.message,
        target=unit.target.name or None,
        code=finding.code or (None if finding.status in {"ok", "skip"} else check.id.rpartition(".")[2]),
        value=finding.value,
        unit=check.unit,
        warn=thresholds.warn,
        crit=thresholds.crit,
        falling=thresholds.falling,
        details=finding.details,
        remedy=remedy,
        duration_seconds=round(seconds, 3),
    )
    return unit


def _unknown(check: Check, error: Exception) -> Finding:
    """A check that could not be made: why, and what it takes."""
    if isinstance(error, NotPermitted):
        needs = f"This check needs: {check.grant}." if check.grant else error.hint
        return Finding("unknown", error.message, code="not_permitted", remedy=Remedy(needs) if needs else None)
    if isinstance(error, OpsctlError):
        return Finding("unknown", error.message, code=error.code, remedy=Remedy(error.hint) if error.hint else None)
    get_logger().error("doctor.bug", check=check.id, exc_info=error)
    text = "Run it again with --debug and report what it prints."
    return Finding("unknown", f"A bug in opsctl: {type(error).__name__}: {error}", code="bug", remedy=Remedy(text))


def _skipped(unit: Unit, message: str, because: str | None = None) -> Unit:
    limits = unit.thresholds
    unit.result = CheckResult(
        id=unit.check.id,
        title=unit.check.title,
        status="skip",
        message=message,
        target=unit.target.name or None,
        unit=unit.check.unit,
        warn=limits.warn,
        crit=limits.crit,
        falling=limits.falling,
        because=because,
    )
    return unit


def _fold(units: Sequence[Unit]) -> None:
    """One alarm for one thing: what explains a failure (its container is stopped) becomes part of it.

    What explains several (two databases in one container) becomes part of the first, and the others follow from that.
    """
    folded: dict[Unit, Unit] = {}
    for unit in units:
        for other in units:
            if unit.result is None or not unit.result.failed or not unit.may_be_explained_by(other):
                continue
            if other in folded:
                _put_down_to(folded[other], unit, units)
            elif other.result is not None and other.result.failed:
                unit.result = _with_reason(unit.result, other)
                _put_down_to(unit, other, units)
                folded[other] = unit


def _with_reason(effect: CheckResult, other: Unit) -> CheckResult:
    """A failure with what explains it: the first reason's words, code and remedy."""
    reason = other.result
    if reason is None or "reason" in effect.details:
        return effect
    return replace(
        effect,
        message=reason.message if effect.code == NO_CONTAINER else f"{reason.message} {effect.message}",
        code=reason.code,
        remedy=reason.remedy or effect.remedy,
        details={**effect.details, "reason": other.check.id},
    )


def _put_down_to(cause: Unit, other: Unit, units: Sequence[Unit]) -> None:
    """``other``, and what was skipped because of it, is no alarm of its own any more."""
    for each in units:
        if each.result is not None and (each is other or each.root is other):
            each.root = cause
            each.result = replace(each.result, status="skip", because=cause.check.id)
