"""How checks are run: after what they depend on, side by side, within a time, and with one cause in the end."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest

from opsctl.checks import ALL_CHECKS, choose_units, thresholds_of
from opsctl.checks.check import NO_CONTAINER, Check, CheckResult, Finding, Remedy, Target, Thresholds
from opsctl.checks.report import as_document, from_document, judge_again, report, verdict, worst
from opsctl.checks.run import SESSIONS, list_units, run_checks
from opsctl.checks.samples import Samples
from opsctl.checks.scope import Scope
from opsctl.config import load_config
from opsctl.errors import ConfigurationError, DatabaseUnreachable, NotPermitted, OpsctlError, UsageError


def scope(*databases):
    nothing = {}.__getitem__  # a check of these tests opens nothing
    return Scope(
        config=load_config(working_folder=Path("/")),
        databases=databases,
        clock=lambda: datetime.now(UTC),
        open_server=nothing,
        open_repositories=dict,
        open_tools=dict,
    )


def check(name, status="ok", **options):
    """A check that finds ``status``, or raises it."""

    def probe(_scope, target, _thresholds):
        if isinstance(status, Exception):
            raise status
        return Finding(status, f"{name} is {status}", details={"target": target})

    options = {"targets": lambda _scope: [Target("a")], **options}
    return Check(**{"id": name, "title": name, "probe": probe, "reads": "", "why": "", "fix": "fix it", **options})


def run(*checks, seconds=5.0):
    found = scope("a")
    return run_checks(list_units(checks, found, {}), found, run_seconds=seconds)


def told(results):
    return [(each.id, each.status, each.because) for each in results]


def test_what_depends_on_a_failed_check_is_skipped_down_to_the_leaves():
    """One cause, not fourteen alarms: every descendant names the failed one; a warning stops nothing."""
    results = run(
        check("docker", "crit", targets=lambda _: [Target()]),
        check("service", after=("docker",)),
        check("http", "crit", after=("service",)),
        check("db", "warn"),
        check("db.blocked", after=("db",)),
        check("disk", OpsctlError("no"), targets=lambda _: [Target("/backups")]),
        check("backup", "crit", after=("disk",), targets=lambda _: [Target("a", within=("/backups",)), Target("b")]),
    )

    assert told(results) == [
        ("docker", "crit", None),
        ("service", "skip", "docker"),
        ("http", "skip", "docker"),
        ("db", "warn", None),
        ("db.blocked", "ok", None),
        ("disk", "unknown", None),
        ("backup", "skip", "disk"),  # a is on that disk
        ("backup", "crit", None),  # b is not
    ]


def test_a_check_never_vanishes():
    """What raises is unknown with the reason, what has no target is skipped, and a missing grant is named."""

    def no_targets(_scope):
        raise OpsctlError("cannot list", hint="list it")

    results = run(
        check("bug", ValueError("oops")),
        check("grant", NotPermitted("may not"), grant="pg_monitor"),
        check("lost", OpsctlError("gone", hint="look")),
        check("nothing", targets=lambda _: [], not_configured="None there."),
        check("unlisted", targets=no_targets),
    )

    assert told(results) == [(name, status, None) for name, status in [
        ("bug", "unknown"), ("grant", "unknown"), ("lost", "unknown"), ("nothing", "skip"), ("unlisted", "unknown"),
    ]]  # fmt: skip
    assert results[0].code == "bug"
    assert "ValueError" in results[0].message
    assert "pg_monitor" in results[1].remedy.text
    assert (results[2].message, results[2].remedy) == ("gone", Remedy("look"))
    assert results[3].message == "None there."


def test_what_hangs_is_given_up_on_and_takes_only_its_own_lane_along():
    """A hung server costs its timeout, not the run; what shares its session is skipped, everything else is done."""
    forever = Event()

    def hang(_scope, _target, _thresholds):
        forever.wait(60)
        return Finding("ok", "too late")

    lane = {"lane": "db", "timeout_seconds": 0.3}
    started = time.monotonic()
    results = run(
        replace(check("db.hang", **lane), probe=hang),
        check("db.next", **lane),
        check("db.next.child", after=("db.next",)),
        check("db.next", **{**lane, "targets": lambda _: [Target("b")]}),
        replace(check("slow", timeout_seconds=60), probe=hang),
        check("late", after=("slow",)),
        seconds=1.0,
    )

    assert told(results) == [
        ("db.hang", "unknown", None),
        ("db.next", "skip", "db.hang"),
        ("db.next.child", "skip", "db.hang"),
        ("db.next", "ok", None),
        ("slow", "unknown", None),
        ("late", "skip", "slow"),
    ]
    assert "No answer within" in results[0].message
    assert time.monotonic() - started < 30, "it ended because the run's time was over, not because the checks did"
    forever.set()


def test_checks_of_one_lane_run_in_turn_and_a_lost_session_ends_the_lane():
    """The checks of a database share its session: never two at a time, none after it is lost."""
    under_way, most = set(), []

    def busy(_scope, target, _thresholds):
        under_way.add(target)
        most.append(len(under_way))
        time.sleep(0.01)
        under_way.remove(target)
        return Finding("ok", "")

    lanes = [replace(check(f"c{n}", lane="db"), probe=busy) for n in range(5)]
    results = run(*lanes, check("lost", DatabaseUnreachable("gone"), lane="db"), check("after", lane="db"))

    assert set(most) == {1}
    assert told(results)[5:] == [("lost", "unknown", None), ("after", "skip", "lost")]


def test_few_lanes_are_open_at_a_time():
    """However many databases there are, only so many have a session at once; each one's ends with its last check."""
    opened, most = set(), []
    found = scope()
    found.end_session = opened.discard

    def busy(_scope, target, _thresholds):
        opened.add(target)
        most.append(len(opened))
        return Finding("crit" if target == "t3" else "ok", "")

    targets = [Target(f"t{n}") for n in range(9)]
    lane = {"lane": "db", "targets": lambda _scope: targets}
    first = replace(check("first", **lane), probe=busy)
    checks = [first, *(replace(check(f"c{n}", after=("first",), **lane), probe=busy) for n in range(3))]
    results = run_checks(list_units(checks, found, {}), found)

    assert max(most) == SESSIONS
    assert not opened
    assert [each.target for each in results if each.status == "ok"] == [
        target.name for _ in checks for target in targets if target.name != "t3"
    ]
    assert {each.because for each in results if each.status == "skip"} == {"first"}


def test_what_never_had_its_turn_is_unknown():
    """More hung databases than may be open at a time: the run still ends, and the last of them is no gap."""
    forever = Event()
    lane = {"lane": "db", "timeout_seconds": 60, "targets": lambda _scope: [Target(f"t{n}") for n in range(5)]}
    results = run(
        replace(check("first", **lane), probe=lambda *_: forever.wait(60)), check("next", **lane), seconds=0.3
    )
    forever.set()

    assert [each.status for each in results] == ["unknown"] * 5 + ["skip"] * 3 + ["unknown"] * 2
    assert "before its turn came" in results[4].message


def test_the_reason_is_folded_into_its_effect():
    """The stopped container of a database is one alarm: the database's, with the container's words and remedy."""
    stopped = Finding(
        "crit", "Container db has exited.", code="exited", remedy=Remedy("Start it.", "opsctl restart db")
    )
    services = replace(
        check("service.state", targets=lambda _: [Target("db"), Target("bot")]), probe=lambda *_: stopped
    )
    refused = check("db.connect", "crit", targets=lambda _: [Target("a", within=("db",))], explained_by=("service",))
    results = run(services, check("http", after=("service.state",), targets=lambda _: [Target("db")]), refused)

    assert told(results) == [
        ("service.state", "skip", "db.connect"),
        ("service.state", "crit", None),
        ("http", "skip", "db.connect"),
        ("db.connect", "crit", None),
    ]
    cause = results[3]
    assert (cause.code, cause.remedy.command) == ("exited", "opsctl restart db")
    assert cause.message.startswith("Container db has exited. ")


def test_a_database_and_a_service_of_one_name_are_two_things():
    """What lives in the database db does not wait for the container of the service db, nor the other way round."""
    health = check("service.health", "crit", targets=lambda _: [Target("db")])
    state = check("service.state", targets=lambda _: [Target("db"), Target("api", within=("db:db",))])
    connect = check("db.connect", targets=lambda _: [Target("db", within=("service:db",))])
    answer = check(
        "http.answer",
        after=("service.health", "db.connect"),
        targets=lambda _: [Target("api", within=("service:api", "db:db"))],
    )
    assert told(run(health, state, connect, answer))[-1] == ("http.answer", "ok", None)

    refused = check("db.connect", "crit", targets=lambda _: [Target("db", within=("service:other",))])
    assert told(run(state, refused, answer))[-1] == ("http.answer", "skip", "db.connect")


def test_one_reason_of_several_failures_is_one_alarm():
    """Two databases in one stopped container: the first has the alarm, the second and what hangs on it follow.

    Where a failure says no more than that the container does not run, the reason says it alone.
    """
    stopped = check("service.state", "crit", targets=lambda _: [Target("db")])
    refused = replace(
        check(
            "db.connect",
            targets=lambda _: [Target(name, within=("db",)) for name in ("a", "b")],
            explained_by=("service",),
        ),
        probe=lambda *_: Finding("crit", "No container.", code=NO_CONTAINER),
    )
    below = check("db.blocked", targets=lambda _: [Target("a"), Target("b")], after=("db.connect",))
    results = run(stopped, refused, below)

    assert told(results) == [
        ("service.state", "skip", "db.connect"),
        ("db.connect", "crit", None),
        ("db.connect", "skip", "db.connect"),
        ("db.blocked", "skip", "db.connect"),
        ("db.blocked", "skip", "db.connect"),
    ]
    assert (results[1].message, results[1].code) == ("service.state is crit", "state")


@pytest.mark.parametrize(
    ("statuses", "status", "cause"),
    [
        (["ok", "skip"], "ok", None),
        (["skip"], "unknown", None),
        ([], "unknown", None),
        (["warn", "ok", "warn"], "warn", 0),
        (["warn", "unknown", "unknown"], "unknown", 1),
        (["unknown", "warn", "crit", "crit"], "crit", 2),
    ],
)
def test_the_worst_counts_and_the_first_of_the_worst_is_the_cause(statuses, status, cause):
    """In the order crit, unknown, warn, ok; what was skipped never counts, and nothing seen is not "fine"."""
    results = [CheckResult(f"c{n}", "", each, "message") for n, each in enumerate(statuses)]

    assert worst(results) == status
    assert verdict(results).cause == (None if cause is None else f"c{cause}")


def test_thresholds_rise_or_fall():
    """A rising value is judged from the limit on, a falling one below it."""
    rising, falling = Thresholds(80, 95), Thresholds(20, 5, falling=True)

    assert [rising.judge(value) for value in (79.9, 80, 95)] == ["ok", "warn", "crit"]
    assert [falling.judge(value) for value in (20, 19.9, 4)] == ["ok", "warn", "crit"]
    assert Thresholds().judge(1e9) == "ok"


def test_a_capture_is_judged_again_by_todays_thresholds():
    """Only what a threshold decided changes; a refused connection stays what it was, and a capture is recognised."""
    by_threshold = CheckResult("db.connections", "", "ok", "", value=85.0, unit="%", warn=90, crit=95)
    by_fact = CheckResult("db.blocked", "", "crit", "", value=0.0, warn=30, crit=120, details={"a": [1]})
    saved = {"result": as_document(report([by_threshold, by_fact]))}
    results = judge_again(from_document(saved), thresholds_of({}, source="x"))

    assert [each.status for each in results] == ["warn", "crit"]
    assert (results[0].warn, results[1]) == (80, by_fact)
    for wrong in (None, [], {"result": None}, {"result": {"checks": [{"id": 1}]}}):
        with pytest.raises(UsageError, match="doctor --json"):
            from_document(wrong)


def test_thresholds_of_the_configuration():
    """One may be changed alone; unknown ids, checks without thresholds and contradictions are refused by name."""
    assert thresholds_of({"db.connections": (50, None)}, source="x")["db.connections"] == Thresholds(50, 95)
    for wrong, message in [
        ({"db.connektions": (1, 2)}, "no such check"),
        ({"db.connections": (96, None)}, "above crit"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            thresholds_of(wrong, source="x")


def test_checks_are_chosen_by_id_prefix_and_target():
    """What a chosen check depends on comes along; an unknown word is refused with the nearest known one."""
    units = list_units(ALL_CHECKS, scope("a", "b.c"), {})

    def chosen(*words, **options):
        return [(each.check.id, each.target.name) for each in choose_units(units, words, **options)]

    assert chosen("db.blocked.b.c") == [("db.connect", "b.c"), ("db.blocked", "b.c")]
    assert chosen("db.blocked") == [
        ("db.connect", "a"),
        ("db.connect", "b.c"),
        ("db.blocked", "a"),
        ("db.blocked", "b.c"),
    ]
    assert {target for _, target in chosen("db.a")} == {"a"}
    assert ("db.blocked", "a") not in chosen(disabled=["db.blocked"])
    assert ("db.blocked", "a") in chosen("db.blocked", disabled=["db.blocked"])
    with pytest.raises(UsageError) as refused:
        chosen("db.blokked")
    assert "db.blocked" in refused.value.hint


def test_the_registry_is_in_order():
    """Ids are unique and of two words, every check stands after those it depends on, and explains itself."""
    seen = set()
    for each in ALL_CHECKS:
        assert set(each.after) <= seen, each.id
        assert each.id not in seen
        seen.add(each.id)
        assert each.reads
        assert not each.reads.endswith(".")
        assert each.why.endswith(".")
        assert each.fix.endswith(".")
        assert not each.thresholds.contradict


def test_samples_last_from_run_to_run(tmp_path):
    """A sample is there for the next run with its age; a damaged file, or none to write, is like no sample."""
    path, now = tmp_path / "state" / "samples.json", datetime.now(UTC)
    for expected in (None, {"n": 1}):
        samples = Samples(path)
        earlier = samples.exchange("c", "t", {"n": 1}, now=now if expected is None else now.replace(year=now.year + 1))
        assert (earlier and earlier[1]) == expected
        samples.save()
    path.write_text("{")
    assert Samples(path).exchange("c", "t", {}, now=now) is None
    Samples(tmp_path / "state" / "samples.json" / "no folder").save()
