"""A scenario's run: what runs unasked, what is asked, what is green, what is undone, and what the timeline says."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from waiting import wait_for

from opsctl.checks.check import CheckResult
from opsctl.errors import OpsctlError
from opsctl.incident import Incidents
from opsctl.runbook.green import is_green, status_of
from opsctl.runbook.means import Means
from opsctl.runbook.parse import parse
from opsctl.runbook.programs import KEPT_BYTES, Done, run_program
from opsctl.runbook.resume import progress_of
from opsctl.runbook.run import ScenarioRun
from opsctl.services.budget import RestartBudget
from opsctl.telemetry.redact import Redactor

ENVIRONMENT = {"PATH": os.environ["PATH"]}
CANARY = "sesame-open-up"

SCENARIO = """\
## S
<!-- parameters: WHAT -->

```sh observe
echo "$WHAT"
```

```sh change id=mend if=db!=ok verify=db undo="sh -c 'echo undone'" wait=1s
sh -c 'echo mended; exit "$CODE"'
```

```text manual id=by-hand
Look.
```
"""


def a_result(status, name="db.connect", because=None):
    return CheckResult(name, name, status, f"it is {status}", because=because)


@dataclass
class Given:
    """What a run of a scenario meets: answers, one after the other; statuses of its checks, the last one for ever."""

    folder: Path
    answers: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=lambda: ["crit", "ok"])
    code: str = "0"
    what: str = f"it's; $(touch pwned) {CANARY}"
    asked: list = field(default_factory=list)
    told: list = field(default_factory=list)
    opsctl: list = field(default_factory=list)
    captures: int = 0
    verified: Done = field(default_factory=lambda: Done("done", "", 0))
    planned: Done = field(default_factory=lambda: Done("done", "the plan", 0, result={"backup_id": "db-1"}))

    def __post_init__(self):
        incidents = Incidents(self.folder / "incidents", Redactor([CANARY]), lambda: datetime.now(UTC))
        self.incident = incidents.open("s", "S")
        self.budget = RestartBudget(self.folder / "steps.json", 3, timedelta(minutes=30), "run", "run of it", "budget")

    def means(self):
        def ask(question):
            self.asked.append(question)
            return self.answers.pop(0)

        def look(_words):
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            return [a_result(status)]

        def run_opsctl(words, *, timeout_seconds, confirmed=None, is_preview=False):
            self.opsctl.append((list(words), confirmed))
            if words[1] == "backup":
                return Done("done", "backed up\n", 0, result={"backups": [{"id": "db-2"}]})
            if words[1] == "verify":
                return self.verified
            return self.planned if "--plan" in words else Done("done", "ran\n", 0)

        def capture():
            self.captures += 1
            self.incident.append("capture", piece="disk", data="full")

        return Means(
            run_opsctl=run_opsctl,
            run_program=lambda words, **options: run_program(
                words, environment={**ENVIRONMENT, "CODE": self.code, "WHAT": self.what}, **options
            ),
            look=look,
            ask=ask,
            tell=self.told.append,
            record=self.incident.append,
            capture=capture,
            look_at_all=lambda: self.incident.append("checks", when="after", checks=[]),
            databases=["db"],
            parameters={"WHAT": self.what},
            budget=self.budget,
            clock=lambda: datetime.now(UTC),
        )

    def run(self, text=SCENARIO, **options):
        return ScenarioRun(parse(text).scenarios[0], self.means(), **options).execute()

    def kinds(self):
        return [event.kind for event in self.incident.events()]


@pytest.fixture
def given(tmp_path):
    return Given(tmp_path)


def states(ran):
    return {each.step.id: each.state for each in ran.steps}


def test_a_change_is_asked_for_and_its_checks_are_asked_until_green(given):
    """Observing asks nothing; a change is captured, confirmed, recorded before and after; then green is waited for."""
    given.statuses, given.answers = ["crit", "crit", "ok"], ["run", "run"]
    ran = given.run(SCENARIO.replace("wait=1s", "wait=30s"))

    assert states(ran) == {"step-1": "done", "mend": "done", "by-hand": "done"}
    assert ran.stopped_by is None
    assert [each.step.id for each in given.asked] == ["mend", "by-hand"]
    assert given.asked[0].commands[0].text == "sh -c 'echo mended; exit \"$CODE\"'"
    assert ran.steps[0].output == given.what + "\n"
    assert not Path("pwned").exists()
    assert given.kinds() == [
        "opened",
        "step_started",
        "step_finished",
        "confirmed",
        "capture",
        "step_started",
        "step_finished",
        "checks",
        "mitigated",
        "confirmed",
        "step_finished",
        "checks",
        "resolved",
    ]
    assert CANARY not in given.incident.path.read_text()
    assert given.incident.verify().is_intact
    assert given.told[-1].kind == "green"


@pytest.mark.parametrize(("answer", "state"), [("stop", "stopped"), ("refused", "refused"), ("skip", "skipped")])
def test_without_a_yes_a_change_does_not_run(given, answer, state):
    """Neither a person's no nor nobody there runs it; left out by hand, the rest goes on."""
    given.statuses, given.answers = ["crit"], [answer, "stop"]
    ran = given.run()

    assert states(ran)["mend"] == state
    assert given.captures == 0
    assert not ran.changed
    assert (ran.stopped_by.step.id if ran.stopped_by else None) == ("by-hand" if answer == "skip" else "mend")
    assert "mended" not in given.incident.path.read_text().replace("echo mended", "")


def test_a_needless_change_is_skipped_unasked(given):
    given.statuses, given.answers = ["ok"], ["run"]
    ran = given.run()

    assert states(ran)["mend"] == "skipped"
    assert [each.step.id for each in given.asked] == ["by-hand"]
    assert "not needed: db is ok" in given.incident.path.read_text()


@pytest.mark.parametrize(
    ("code", "answers", "state", "said"),
    [
        ("0", ["run", "run"], "undone", "not green after 1 s: db.connect is crit: it is crit; it was undone"),
        ("0", ["run", "stop"], "not_green", "not green after 1 s"),
        ("3", ["run", "run"], "undone", "sh ended with 3; it was undone"),
        ("3", ["run", "refused"], "failed", "sh ended with 3"),
    ],
)
def test_what_did_not_work_offers_the_way_back_and_stops(given, code, answers, state, said):
    given.code, given.answers, given.statuses = code, answers, ["crit"]
    ran = given.run()

    assert ran.stopped_by.state == state
    assert said in ran.stopped_by.message
    assert [each.is_undo for each in given.asked] == [False, True]
    assert ("undone\\n" in given.incident.path.read_text()) == (state == "undone")
    assert "by-hand" not in states(ran)
    assert "resolved" not in given.kinds()


def test_only_observe_leaves_out_everything_else(given):
    ran = given.run(only_observe=True)

    assert states(ran) == {"step-1": "done", "mend": "skipped", "by-hand": "skipped"}
    assert given.asked == []


def test_a_change_has_a_budget(given):
    """What three times did not cure, a fourth will not; nobody is even asked."""
    for _ in range(3):
        given.statuses, given.answers = ["crit", "ok"], ["run", "stop"]
        assert states(given.run())["mend"] == "done"
    given.statuses, given.answers = ["crit"], []
    ran = given.run()

    assert ran.stopped_by.state == "refused"
    assert "s/mend was run 3 times in the last 30 minutes; another run of it will not help" in ran.stopped_by.message


DANGER = """\
## S

```sh danger id=back verify=db undo="opsctl restore --undo" wait=1s
opsctl restore latest --before 2026-11-24 --jobs 2
```
"""


def test_a_danger_is_planned_secured_and_confirmed_by_name(given):
    """The plan is shown, the name asked for, a backup taken and verified, then the planned backup is restored.

    Not the latest: that is the one that was just taken.
    """
    given.statuses, given.answers = ["ok"], ["run"]
    ran = given.run(DANGER)

    [question] = given.asked
    assert (question.target, question.facts) == ("db", ("the plan",))
    assert question.commands[0].words == ("opsctl", "restore", "db-1", "--jobs", "2")
    assert given.opsctl == [
        (["opsctl", "restore", "latest", "--before", "2026-11-24", "--jobs", "2", "--plan"], None),
        (["opsctl", "backup", "db", "--no-prune"], None),
        (["opsctl", "verify", "db-2"], None),
        (["opsctl", "restore", "db-1", "--jobs", "2"], "db"),
    ]
    assert ran.steps[0].safeguards == ("db-2",)


def test_a_danger_whose_plan_would_not_work_asks_nothing(given):
    given.planned = Done("failed", "", 16, "The restore would not work: no disk.")
    ran = given.run(DANGER)

    assert (ran.stopped_by.state, given.asked, ran.changed) == ("refused", [], False)
    assert "no disk" in ran.stopped_by.message


@pytest.mark.parametrize("answer", ["run", "refused"])
def test_without_a_verified_backup_a_danger_needs_a_second_yes(given, answer):
    given.statuses, given.answers = ["ok"], ["named", answer]
    given.verified = Done("done", "unknown", 3)
    ran = given.run(DANGER)

    assert given.asked[1].target == "db without a backup"
    assert "could not be verified" in given.asked[1].facts[0]
    assert ran.steps[0].state == ("done" if answer == "run" else "stopped")
    assert len(given.opsctl) == (4 if answer == "run" else 3)


def test_a_restore_that_replaces_nothing_needs_no_backup_first(given):
    given.statuses, given.answers = ["ok"], ["run"]
    given.planned = Done("done", "the plan", 0, result={"backup_id": "db-1", "plan": {"mode": "create"}})
    given.run(DANGER)
    assert [words[1] for words, _ in given.opsctl] == ["restore", "restore"]


def test_an_undo_of_a_danger_is_confirmed_by_name_too(given):
    given.statuses, given.answers = ["crit"], ["run", "run"]
    ran = given.run(DANGER)

    assert ran.stopped_by.state == "undone"
    assert [(each.is_undo, each.target) for each in given.asked] == [(False, "db"), (True, "db")]
    assert given.opsctl[-1] == (["opsctl", "restore", "--undo"], "db")


# Interrupted, resumed


def test_a_run_that_ends_in_mid_step_says_so_and_is_resumed(given):
    """What was finished is not done again; what was under way is asked for again, with what is unknown about it."""
    scenario = parse(SCENARIO).scenarios[0]

    def interrupted(*_words, **_options):
        raise KeyboardInterrupt

    means = given.means()
    given.statuses, given.answers = ["crit"], ["run"]
    run = ScenarioRun(scenario, means)
    original = run._run_command  # the first step runs, in the second one Ctrl-C comes
    run._run_command = lambda step, *rest: (original if step.id == "step-1" else interrupted)(step, *rest)
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    last = given.incident.events()[-1]
    assert (last.kind, last.fields["outcome"]) == ("step_finished", "interrupted")

    given.incident.append("step_started", step="mend", digest=scenario.steps[1].digest)  # and once kill -9 came
    finished, under_way = progress_of(given.incident.events(), scenario)
    assert (finished, under_way) == ({"step-1"}, {"mend"})

    given.statuses, given.answers = ["crit", "ok"], ["run", "run"]
    ran = given.run(finished=finished, interrupted=under_way, has_captured=True)
    assert states(ran) == {"step-1": "skipped", "mend": "done", "by-hand": "done"}
    assert "What it did is unknown" in given.asked[1].facts[0]
    assert given.captures == 1
    assert progress_of(given.incident.events(), scenario) == ({"step-1", "mend", "by-hand"}, frozenset())


def test_a_step_that_was_corrected_in_between_runs_again(given):
    given.statuses, given.answers = ["crit", "ok"], ["run", "run"]
    given.run()
    corrected = parse(SCENARIO.replace("echo mended", "echo better")).scenarios[0]
    assert progress_of(given.incident.events(), corrected)[0] == {"step-1", "by-hand"}


def test_a_change_that_never_became_green_is_not_finished(given):
    given.statuses, given.answers = ["crit"], ["run", "stop"]
    given.run()
    assert progress_of(given.incident.events(), parse(SCENARIO).scenarios[0])[0] == {"step-1"}


# What is green


def test_green_is_something_well_and_nothing_else():
    ok, skip, behind = a_result("ok"), a_result("skip"), a_result("skip", because="docker")
    assert is_green([ok, skip])
    assert not any(map(is_green, ([], [skip], [ok, behind], [ok, a_result("warn")], [ok, a_result("unknown")])))
    assert [status_of(each) for each in ([ok, skip], [ok, behind], [skip], [behind, a_result("crit")])] == [
        "ok",
        "unknown",
        "skip",
        "crit",
    ]


# Programs


def test_a_program_that_does_not_end_is_killed_with_everything_it_started(tmp_path):
    """The whole process group: one that ignores SIGTERM too."""
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 1000 & echo $! $$ > {pids}; echo begun; sleep 1000"
    done = run_program(["sh", "-c", script], timeout_seconds=1, environment=ENVIRONMENT)

    assert (done.ending, done.output) == ("timed_out", "begun\n")
    assert "did not end within 1 s and was killed" in done.message
    for pid in map(int, pids.read_text().split()):
        wait_for(lambda pid=pid: not _lives(pid), "the child has ended")


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_program_leaves_in_the_background_is_not_waited_for(tmp_path):
    began = time.monotonic()
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; echo up"
    done = run_program(["sh", "-c", script], timeout_seconds=60, environment=ENVIRONMENT)
    pid = int((tmp_path / "pid").read_text())
    try:
        assert (done.ending, done.output) == ("done", "up\n")
        assert time.monotonic() - began < 50
        assert _lives(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_program_that_writes_without_end_takes_bounded_memory():
    shown = []
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo end"
    done = run_program(["sh", "-c", script], timeout_seconds=60, environment=ENVIRONMENT, show=shown.append)
    assert len(done.output) < KEPT_BYTES + 100
    assert done.output.endswith("xend\n")
    assert "bytes left out" in done.output
    assert sum(map(len, shown)) == 3_000_004


def test_what_cannot_be_run_is_a_failure_with_a_reason():
    done = run_program(["no-such-program"], timeout_seconds=1, environment=ENVIRONMENT)
    assert (done.ending, done.message) == ("failed", "no-such-program cannot be run: No such file or directory")
    killed = run_program(["sh", "-c", "kill -9 $$"], timeout_seconds=9, environment=ENVIRONMENT)
    assert (killed.ending, killed.message) == ("failed", "sh ended by SIGKILL")


def test_a_program_dies_with_opsctl(tmp_path):
    """A kill -9 of opsctl leaves no step running behind it."""
    code = (
        "import os; from opsctl.runbook.programs import run_program;"
        f"run_program(['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 1000'], timeout_seconds=None,"
        " environment=dict(os.environ))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as parent:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it has begun")
        parent.kill()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not _lives(pid), "the child has ended")


def test_no_step_runs_when_the_timeline_cannot_be_written(given):
    """Without a record nothing is done."""
    given.statuses, given.answers = ["crit"], ["run"]
    ran = []

    def record(kind, **fields):
        if kind == "step_started" and fields["step"] == "mend":
            raise OpsctlError("The disk is full.")
        return given.incident.append(kind, **fields)

    means = given.means()
    broken = ScenarioRun(parse(SCENARIO).scenarios[0], Means(**{**vars(means), "record": record}))
    with pytest.raises(OpsctlError):
        broken.execute()
    assert ran == []
    assert "mended" not in given.incident.path.read_text().replace("echo mended", "")
