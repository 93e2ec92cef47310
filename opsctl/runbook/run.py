"""A scenario, run step by step: looked, asked, recorded, done, checked. Prints nothing and asks through its means."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from opsctl.checks.check import CheckResult
from opsctl.errors import OpsctlError
from opsctl.runbook import Command, Scenario, Step
from opsctl.runbook.effects import as_run
from opsctl.runbook.green import is_green, status_of
from opsctl.runbook.means import Answer, Means, Progress, Question
from opsctl.runbook.programs import Done
from opsctl.runbook.resolve import is_danger, is_restore, resolved, with_backup

POLL_SECONDS = 1.0

HOW = {"run": "answered", "named": "--confirm"}

State = Literal["done", "failed", "timed_out", "not_green", "skipped", "refused", "stopped", "undone"]


@dataclass(frozen=True)
class StepResult:
    step: Step
    state: State
    output: str = ""
    message: str = ""
    exit_code: int | None = None
    duration_seconds: float = 0.0
    safeguards: tuple[str, ...] = ()
    """The backups taken before it."""


@dataclass(frozen=True)
class Ran:
    """What a run came to. ``stopped_by`` is the step it did not get past."""

    steps: tuple[StepResult, ...]
    stopped_by: StepResult | None = None

    @property
    def changed(self) -> bool:
        return any(each.step.changes and each.state not in {"skipped", "refused", "stopped"} for each in self.steps)

    @property
    def needs_attention(self) -> bool:
        """Whether something was looked at in vain, or left out by a person."""
        return any(each.state in {"failed", "timed_out"} for each in self.steps)


@dataclass(frozen=True)
class _Preview:
    """A step's commands as they will run, and what is known before. ``replaces``: there is something to lose."""

    commands: tuple[Command, ...]
    facts: tuple[str, ...]
    replaces: bool


@dataclass
class ScenarioRun:
    """One run of a scenario. ``finished`` are steps an earlier run of the incident came through."""

    scenario: Scenario
    means: Means
    only_observe: bool = False
    finished: Collection[str] = frozenset()
    interrupted: Collection[str] = frozenset()
    """Steps that were under way when an earlier run ended: what they did is unknown."""
    has_captured: bool = False
    _results: list[StepResult] = field(default_factory=list)

    def execute(self) -> Ran:
        """Step by step, up to the end or to the first that may not run, or did not work."""
        stopped_by = None
        for step in self.scenario.steps:
            result = self._step(step)
            self._results.append(result)
            if result.state not in {"done", "skipped"} and step.effect != "observe":
                stopped_by = result
                break
        ran = Ran(tuple(self._results), stopped_by)
        if ran.changed:
            self.means.look_at_all()
            if stopped_by is None and self._is_all_green():
                self.means.record("resolved", text=f"{self.scenario.id} is through and all its checks are green.")
        return ran

    def _is_all_green(self) -> bool:
        """What the last change made green may have been broken again by now."""
        words = dict.fromkeys(word for step in self.scenario.steps if step.changes for word in step.verify)
        return is_green(self._look([*words]))

    def _look(self, words: Sequence[str]) -> tuple[CheckResult, ...]:
        return tuple(self.means.look(words))

    def _record_checks(self, when: str, results: Iterable[CheckResult], step: Step | None = None) -> None:
        keys = ("id", "target", "status", "code", "value", "message")
        told = [{key: getattr(each, key) for key in keys} for each in results]
        self.means.record("checks", when=when, step=step.id if step else None, checks=told)

    # One step

    def _step(self, step: Step) -> StepResult:
        if step.id in self.finished:
            return self._skip(step, "done before, in this incident", is_recorded=True)
        if self.only_observe and step.effect != "observe":
            return self._skip(step, "only what looks is run")
        reason = self._why_needless(step)
        if reason is not None:
            return self._skip(step, reason)
        if step.effect == "observe":
            return self._run(step, resolved(step.commands, self.means.parameters))
        return self._manual(step) if step.effect == "manual" else self._change(step)

    def _skip(self, step: Step, reason: str, *, is_recorded: bool = False) -> StepResult:
        if not is_recorded:
            self.means.record("step_skipped", step=step.id, effect=step.effect, digest=step.digest, reason=reason)
        self.means.tell(Progress("skipped", step, reason))
        return StepResult(step, "skipped", message=reason)

    def _why_needless(self, step: Step) -> str | None:
        """What of the step's ``if=`` does not hold, if anything."""
        for condition in step.conditions:
            results = self._look([condition.check])
            status = status_of(results)
            if not condition.holds(status):
                self._record_checks("condition", results, step)
                return f"not needed: {condition.check} is {status}"
        return None

    def _manual(self, step: Step) -> StepResult:
        answer = self.means.ask(Question(step, ()))
        if answer in HOW:
            self.means.record("confirmed", step=step.id, effect=step.effect, how=HOW[answer], text=step.text)
            self.means.record("step_finished", step=step.id, effect=step.effect, digest=step.digest, outcome="done")
            return StepResult(step, "done")
        return self._not_run(step, answer)

    def _not_run(self, step: Step, answer: Answer) -> StepResult:
        if answer == "skip":
            return self._skip(step, "left out by hand")
        state: State = "refused" if answer == "refused" else "stopped"
        reason = "nobody is there to confirm it" if answer == "refused" else "not confirmed"
        self.means.record("refused", step=step.id, effect=step.effect, reason=reason)
        return StepResult(step, state, message=reason)

    def _change(self, step: Step) -> StepResult:
        commands = resolved(step.commands, self.means.parameters)
        key = f"{self.scenario.id}/{step.id}"
        try:
            self.means.budget.check(key, self.means.clock())
            plan = self._previewed(step, commands)
        except OpsctlError as error:
            return self._blocked(step, error.message)
        facts = plan.facts
        if step.id in self.interrupted:
            facts = ("It was under way when an earlier run of this incident ended. What it did is unknown.", *facts)
        answer = self.means.ask(Question(step, plan.commands, self._target(step), facts))
        if answer not in HOW:
            return self._not_run(step, answer)
        self.means.record(
            "confirmed",
            step=step.id,
            effect=step.effect,
            how=HOW[answer],
            command=[each.text for each in plan.commands],
            target=self._target(step),
        )
        if not self.has_captured:
            self.has_captured = True
            self.means.capture()
        safeguards: tuple[str, ...] = ()
        if step.effect == "danger" and plan.replaces:
            secured = self._safeguard(step)
            if secured is None:
                return StepResult(step, "stopped", message="there is no fresh backup that was verified")
            safeguards = secured
        self.means.budget.spend(key, self.means.clock())
        result = replace(self._run(step, plan.commands), safeguards=safeguards)
        if result.state == "done":
            result = self._verified(step, result)
        return result if result.state == "done" else self._offer_undo(step, result)

    def _blocked(self, step: Step, message: str) -> StepResult:
        self.means.record("refused", step=step.id, effect=step.effect, reason=message)
        self.means.tell(Progress("blocked", step, message))
        return StepResult(step, "refused", message=message)

    def _target(self, step: Step) -> str | None:
        """The name to be typed before what is dangerous."""
        if step.effect != "danger":
            return None
        return step.target or (self.means.databases[0] if len(self.means.databases) == 1 else None)

    def _previewed(self, step: Step, commands: tuple[Command, ...]) -> "_Preview":
        """A restore is planned first, and its backup fixed: the one taken before it would be the latest then.

        Raises OpsctlError for a plan that would not work.
        """
        found: list[Command] = []
        facts: list[str] = []
        modes: list[str] = []
        for command in commands:
            if not is_restore(command):
                found.append(command)
                modes.append("")
                continue
            words = [*command.words, "--plan"]
            planned = self.means.run_opsctl(words, timeout_seconds=step.timeout_seconds, is_preview=True)
            if planned.ending != "done":
                raise OpsctlError(planned.message)
            result = planned.result or {}
            facts.append(planned.output.rstrip())
            found.append(with_backup(command, str(result.get("backup_id") or "")))
            modes.append(result.get("plan", {}).get("mode", ""))
        return _Preview(tuple(found), tuple(facts), replaces=not set(modes) <= {"create", "fill"})

    def _safeguard(self, step: Step) -> tuple[str, ...] | None:
        """Fresh, verified backups of what the step may harm. ``None``: there are none, and nobody goes on without."""
        target = self._target(step)
        taken: list[str] = []
        for database in [target] if target in self.means.databases else self.means.databases:
            problem = self._backed_up(step, str(database), taken)
            if problem is None:
                continue
            self.means.tell(Progress("safeguard", step, problem))
            self.means.record("note", step=step.id, text=f"No safe backup: {problem}")
            question = Question(step, (), f"{target} without a backup", (problem,))
            if self.means.ask(question) != "run":
                self.means.record("refused", step=step.id, effect=step.effect, reason="no safe backup")
                return None
            self.means.record("confirmed", step=step.id, effect=step.effect, text="without a fresh backup")
        return tuple(taken)

    def _backed_up(self, step: Step, database: str, taken: list[str]) -> str | None:
        """Take a backup and read it back; what is wrong if it is no safeguard."""
        self.means.tell(Progress("safeguard", step, f"Backing up {database} first"))
        done = self.means.run_opsctl(["opsctl", "backup", database, "--no-prune"], timeout_seconds=None)
        backups = (done.result or {}).get("backups") or [{}]
        name = backups[0].get("id")
        if name is None:
            return f"{database} could not be backed up: {done.message}"
        verified = self.means.run_opsctl(["opsctl", "verify", name], timeout_seconds=None)
        self.means.record(
            "note",
            step=step.id,
            text=f"Backed up {database} as {name} before the step.",
            output=f"{done.output}{verified.output}",
        )
        if verified.exit_code != 0:
            return f"the backup {name} could not be verified: {verified.message or verified.output.strip()}"
        taken.append(name)
        self.means.tell(Progress("safeguard", step, f"{name} is stored and verified"))
        return None

    def _run(self, step: Step, commands: tuple[Command, ...], *, is_undo: bool = False) -> StepResult:
        """The commands one after the other, recorded before and after. A change ends with the first that fails."""
        texts = [each.text for each in commands]
        about = {"step": step.id, "effect": step.effect, **({"undo": True} if is_undo else {})}
        self.means.record("step_started", **about, digest=step.digest, command=texts, verify=list(step.verify))
        self.means.tell(Progress("begins", step, "\n".join(texts)))
        began = time.monotonic()
        outputs: list[str] = []
        done = Done("done", exit_code=0)
        try:
            for command in commands:
                last = self._run_command(step, command, began)
                outputs.append(last.output)
                done = last if done.ending == "done" else done
                if last.ending != "done":
                    self.means.tell(Progress("blocked", step, last.message))
                    if step.effect != "observe":
                        break
        except BaseException as error:
            seconds = time.monotonic() - began
            reason = str(error) or type(error).__name__
            self._record_end(about, step, "interrupted", Done("failed", "".join(outputs), message=reason), seconds)
            raise
        seconds = time.monotonic() - began
        whole = replace(done, output="".join(outputs))
        self._record_end(about, step, done.ending, whole, seconds)
        self.means.tell(Progress("ends", step, done.message))
        return StepResult(step, done.ending, whole.output, done.message, done.exit_code, round(seconds, 3))

    def _record_end(self, about: Mapping[str, Any], step: Step, outcome: str, done: Done, seconds: float) -> None:
        self.means.record(
            "step_finished",
            **about,
            digest=step.digest,
            outcome=outcome,
            exit_code=done.exit_code,
            duration_seconds=round(seconds, 3),
            reason=done.message or None,
            output=done.output,
        )

    def _run_command(self, step: Step, command: Command, began: float) -> Done:
        left = None if step.timeout_seconds is None else step.timeout_seconds - (time.monotonic() - began)
        if left is not None and left <= 0:
            return Done("timed_out", message=f"the step's {step.timeout_seconds:g} s were over before `{command.text}`")
        if command.is_opsctl:
            confirmed = None if step.effect == "observe" else self._target(step) or ""
            return self.means.run_opsctl(command.words, timeout_seconds=left, confirmed=confirmed)
        return self.means.run_program(
            as_run(command.words, step.effect),
            timeout_seconds=left,
            show=lambda text: self.means.tell(Progress("output", step, text)),
        )

    # After a change

    def _verified(self, step: Step, result: StepResult) -> StepResult:
        """Ask the step's checks again and again until they are green, or its time for that is over."""
        give_up_at = time.monotonic() + step.wait_seconds
        self.means.tell(Progress("waits", step, ", ".join(step.verify)))
        while True:
            looked_at = time.monotonic()
            found = self._look(step.verify)
            green = is_green(found)
            if green or time.monotonic() >= give_up_at:
                break
            time.sleep(max(0.0, min(looked_at + POLL_SECONDS, give_up_at) - time.monotonic()))
        self._record_checks("after", found, step)
        self.means.tell(Progress("green" if green else "not_green", step, results=found))
        if green:
            self.means.record("mitigated", step=step.id, text=f"{', '.join(step.verify)} green after {step.id}.")
            return result
        told = "; ".join(f"{each.name} is {each.status}: {each.message}" for each in found if each.status != "ok")
        return replace(result, state="not_green", message=f"not green after {step.wait_seconds:g} s: {told}")

    def _offer_undo(self, step: Step, result: StepResult) -> StepResult:
        """The way back, if the step has one; then the run stops, whatever the answer."""
        if step.undo is None:
            return result
        commands = resolved((step.undo,), self.means.parameters)
        name = self._target(step) if is_danger(commands[0]) else None
        question = Question(step, commands, name, (result.message,), is_undo=True)
        if self.means.ask(question) != "run":
            self.means.record("refused", step=step.id, undo=True, reason="the undo was offered and not taken")
            return result
        self.means.record("confirmed", step=step.id, undo=True, command=[each.text for each in commands])
        undone = self._run(step, commands, is_undo=True)
        if undone.state != "done":
            return replace(result, message=f"{result.message}; and the undo failed: {undone.message}")
        self._record_checks("after", self._look(step.verify), step)
        return replace(result, state="undone", message=f"{result.message}; it was undone")


def as_result(result: StepResult) -> dict[str, Any]:
    """A step's result as ``runbook run --json`` prints it."""
    keys = ("state", "message", "exit_code", "duration_seconds", "output")
    told = {key: getattr(result, key) for key in keys}
    return {"id": result.step.id, "effect": result.step.effect, **told, "safeguards": list(result.safeguards)}
