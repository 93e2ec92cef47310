"""The checks of services: what is made of a container's state. Real containers are in tests/acceptance."""

from datetime import UTC, datetime, timedelta

import pytest

from opsctl.checks.check import Finding, Thresholds
from opsctl.checks.services import (
    judge_crash_loop,
    judge_drift,
    judge_health,
    judge_memory,
    judge_state,
    restarts_lately,
    worst,
)
from opsctl.services import Drift, HealthCheck, Service, ServiceState
from opsctl.services.compose import NO_PROGRAM

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HEALTH_CHECK = HealthCheck(interval_seconds=1, timeout_seconds=1, retries=3, start_period_seconds=0)
CANARY = "sesame-open-up"


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def service(*, project="saas", health_check=None, limit=None, **state):
    values = {"status": "running", "health": "none", "restart_count": 0, "oom_killed": False, "exit_code": None}
    values |= {"started_at": ago(90), "finished_at": None, "image": "local/saas:1", **state}
    made_of = (project, "bot" if project else None, ago(9000))
    return Service("bot", "1", "saas_bot_1", *made_of, ServiceState(**values), health_check, limit)


def ended(code, **state):
    return service(status="exited", exit_code=code, finished_at=ago(12), **state)


@pytest.mark.parametrize(
    ("container", "status", "code", "said", "command"),
    [
        (service(), "ok", None, "runs for 90 s", None),
        (ended(0), "crit", "stopped", "has ended 12 s ago with exit code 0", "opsctl restart bot"),
        (ended(1), "crit", "exited", "exit code 1.", "opsctl restart bot"),
        (ended(137), "crit", "killed", "exit code 137 (SIGKILL", "opsctl restart bot"),
        (ended(139), "crit", "segfault", "139 (SIGSEGV", "opsctl restart bot"),
        (ended(143), "crit", "stopped", "143 (SIGTERM", "opsctl restart bot"),
        (ended(134), "crit", "exited", "134 (SIGABRT)", "opsctl restart bot"),
        (ended(255), "crit", "exited", "exit code 255.", "opsctl restart bot"),
        (ended(127), "crit", "exited", "127 (its command is not there)", "opsctl restart bot --recreate"),
        (ended(127, project=None), "crit", "exited", "127", "opsctl restart bot"),
        (ended(3, restart_count=5), "crit", "exited", "Docker gave up after 5 restarts", "opsctl restart bot"),
        (service(status="restarting", exit_code=3), "skip", None, "is being restarted", None),
        (service(status="paused"), "crit", "paused", "is paused", "docker unpause saas_bot_1"),
        (service(status="created"), "crit", "created", "was made but never started", "opsctl restart bot"),
        (service(status="dead"), "crit", "dead", "is dead", "opsctl restart bot"),
    ],
)
def test_a_container_that_does_not_run(container, status, code, said, command):
    """How it ended is told by its exit code, and what starts it again is named."""
    found = judge_state(container, NOW)

    assert (found.status, found.code) == (status, code)
    assert said in found.message
    assert (found.remedy and found.remedy.command) == command


@pytest.mark.parametrize(
    ("container", "seen", "status", "said"),
    [
        (service(), 0, "ok", "memory enough"),
        (ended(137, oom_killed=True, limit=8 << 20), 9999, "crit", "its limit: 8.0 MiB) and was killed 12 s ago"),
        (service(oom_killed=True), 3599, "crit", "killed a program in saas_bot_1"),
        (service(oom_killed=True), 3601, "ok", "killed a program in saas_bot_1"),
    ],
)
def test_out_of_memory(container, seen, status, said):
    """A container that ended so is down; one that runs on, or again, is an alarm for an hour."""
    found = judge_memory(container, ago(seen), NOW)

    assert found.status == status
    assert said in found.message
    if status == "crit":
        assert found.remedy.command == "opsctl restart bot --recreate"


@pytest.mark.parametrize(
    ("counts", "container", "restarts"),
    [
        ({300: 0, 0: 0}, {}, 0),
        ({300: 2, 0: 6}, {}, 4),  # of the last five minutes
        ({3000: 0, 700: 1, 300: 2, 0: 3}, {}, 2),  # since the sample before the window
        ({3000: 0, 0: 4}, {}, 0),  # an hour between two looks says nothing of ten minutes
        ({300: 7, 0: 0}, {}, 0),  # started by hand: what was before is over
        ({300: 7, 0: 2}, {"finished": 5}, 2),
        ({0: 4}, {"created": 60}, 4),  # a first look at a new container
        ({0: 4}, {"finished": 30}, 4),  # at one that has only just ended
        ({0: 4}, {"finished": 300}, 1),  # that ended once lately, as far as is known
        ({0: 400}, {"finished": 9000}, 0),  # long ago
    ],
)
def test_restarts_are_those_of_the_last_minutes(counts, container, restarts):
    """Docker counts since the last start by hand; earlier runs of doctor tell how many are new."""
    points = [(NOW.timestamp() - age, float(count)) for age, count in counts.items()]
    created, finished = ago(container.get("created", 9000)), container.get("finished")
    found = restarts_lately(points, created_at=created, finished_at=None if finished is None else ago(finished))

    assert found == restarts


@pytest.mark.parametrize(
    ("restarts", "state", "status"),
    [
        (0, {}, "ok"),
        (1, {}, "warn"),
        (3, {}, "crit"),
        (0, {"status": "restarting", "exit_code": 3, "finished_at": ago(2)}, "crit"),
    ],
)
def test_a_crash_loop(restarts, state, status):
    """Once is a warning, three times a loop; one that is down between two lives is critical at once."""
    found = judge_crash_loop(service(**state), restarts, Thresholds(1, 3), NOW)

    assert found.status == status
    if status != "ok":
        assert found.remedy.command == "opsctl logs bot -n 50"
    if state:
        assert "2 s ago with exit code 3" in found.message


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ({"health": "healthy"}, "ok", "is healthy"),
        ({"health": "unhealthy", "health_output": "no\n disk"}, "crit", "unhealthy: no disk."),
        ({"health": "unhealthy", "health_output": "x" * 5000}, "crit", "x" * 300 + "."),
        ({"health": "starting", "started_at": ago(7)}, "ok", "is starting"),
        ({"health": "starting", "started_at": ago(9)}, "crit", "longer than its health check allows"),
    ],
)
def test_health(state, status, said):
    """What the health check printed is told, and not at length; starting has the time that its settings give it."""
    found = judge_health(service(**state, health_check=HEALTH_CHECK), NOW)

    assert found.status == status
    assert said in found.message
    assert judge_health(service(**state), NOW).status == "ok"  # nothing checks it


@pytest.mark.parametrize(
    ("drift", "project", "status", "command"),
    [
        (Drift("none"), "saas", "ok", None),
        (Drift("found", ("variable A is new",)), "saas", "warn", "opsctl restart bot --recreate"),
        (Drift("found", ("image a, now b",)), None, "warn", None),
        (Drift("unknown", reason="the compose file cannot be read here"), "saas", "unknown", None),
        (Drift("unknown", reason=NO_PROGRAM), "saas", "skip", None),
    ],
)
def test_drift(drift, project, status, command):
    """Without a compose program there is nothing to compare with; what could not be read is unknown."""
    found = judge_drift(service(project=project), drift)

    assert found.status == status
    assert (found.remedy and found.remedy.command) == command


def test_a_scaled_service_is_as_its_worst_container():
    """How many are like that is told; a service without containers is not judged."""
    well, ill = Finding("ok", "a runs."), Finding("crit", "b is paused.")

    assert worst([well]) == well
    assert worst([well, ill, ill]).message == "2 of 3 containers: b is paused."
    assert worst([]).status == "skip"


# With an engine

TOML = """
[databases.saasdb]
url = "postgresql://u@/x"
service = "db"
[services.bot]
[services.gone]
"""


@pytest.fixture
def seen(look, canned_engine, monkeypatch):
    """``seen("service")``: a run of checks at an engine where ``bot`` and ``api`` run."""
    monkeypatch.setenv("DOCKER_HOST", canned_engine.host)
    monkeypatch.setenv("PATH", "/nowhere")  # where there is no compose
    return lambda *words, toml=TOML, **options: look(toml, *words, **options)


def test_the_services_that_are_looked_at(seen, canned_engine):
    """The configured ones, and those that databases are in; one without a container is missing, once."""
    found = seen("service")

    assert {each.target for each in found.values() if each.id == "service.state"} == {"bot", "gone", "db"}
    assert found["service.state (bot)"].status == "ok"
    missing = found["service.state (gone)"]
    assert (missing.status, missing.code) == ("crit", "missing")
    assert "`docker compose up -d gone`" in missing.remedy.text
    assert [each.id for each in found.values() if each.target == "gone" and each.status == "crit"] == ["service.state"]
    connect = found["db.connect (saasdb)"]
    assert (connect.status, connect.code, connect.details["reason"]) == ("crit", "missing", "service.state")
    assert connect.message.startswith("There is no container of the service db. ")
    assert found["service.state (db)"].because == "db.connect"
    assert canned_engine.requests.count("GET /version") == 2  # the SDK's own, and the check


def test_one_look_serves_all_checks_of_a_service(seen, canned_engine):
    """All judge the same moment: a container in a crash loop is not another one from check to check."""
    toml = "[services.bot]\n"
    state = canned_engine.containers["bot"]["State"]
    state |= {"Status": "restarting", "Restarting": True, "ExitCode": 3}
    found = seen("service", toml=toml)

    listed = [each for each in canned_engine.requests if each == "GET /containers/json"]
    assert len(listed) == 1
    assert {each.id: each.status for each in found.values()} == {
        "docker": "ok",
        "service.oom": "ok",
        "service.state": "skip",
        "service.crash_loop": "crit",
        "service.health": "skip",
        "service.drift": "skip",
    }


def test_a_crash_loop_is_over_when_it_was_restarted_by_hand(seen, canned_engine):
    """By the samples of earlier runs: the count that rose, and the one that was set back."""
    bot, toml = canned_engine.containers["bot"], "[services.bot]\n"

    def at(minute, count):
        bot["RestartCount"] = count
        now = datetime(2026, 11, 25, tzinfo=UTC) + timedelta(minutes=minute)
        return seen("service.crash_loop", toml=toml, now=now)["service.crash_loop (bot)"]

    assert [at(0, 1).value, at(5, 3).value, at(10, 4).status] == [0, 2, "crit"]
    assert (at(11, 0).status, at(16, 0).status) == ("ok", "ok")


def test_a_services_secrets_are_learned_before_its_words_are_shown(run_opsctl, canned_engine):
    """What its health check prints may hold a value of the container's variables."""
    health = {"Status": "unhealthy", "Log": [{"Output": f"login with {CANARY} failed"}]}
    canned_engine.containers["bot"]["State"]["Health"] = health
    (run_opsctl.work / "opsctl.toml").write_text("[services.bot]\n")
    run = run_opsctl("doctor", "service.health", "--json", env={"DOCKER_HOST": canned_engine.host, "PATH": "/nowhere"})

    assert run.returncode == 2, run
    assert "login with *** failed" in run.json["result"]["verdict"]["summary"]
    assert CANARY not in run.stdout + run.stderr


def test_docker_matters_only_to_what_is_in_it(run_opsctl, tmp_path):
    """Without an engine it is the one cause, of databases in containers too; without services it is not asked for."""

    def doctor(toml):
        (run_opsctl.work / "opsctl.toml").write_text(toml)
        run = run_opsctl("doctor", "db", "service", "docker", "--json", env={"DOCKER_HOST": f"unix://{tmp_path}/none"})
        return {each["id"]: each for each in run.json["result"]["checks"]}

    inside = doctor(TOML)
    assert [name for name, each in inside.items() if each["status"] not in {"ok", "skip"}] == ["docker"]
    assert inside["docker"]["code"] == "unreachable"
    assert inside["db.connect"]["because"] == inside["service.state"]["because"] == "docker"
    outside = doctor('[databases.saasdb]\nurl = "postgresql://u@127.0.0.1:1/x"\n')
    assert [name for name, each in outside.items() if each["status"] not in {"ok", "skip"}] == ["db.connect"]
    assert outside["docker"]["message"].startswith("No service is configured")


def test_a_service_is_not_blamed_while_its_database_does_not_answer(seen, canned_engine):
    """Its bad health is the database's alarm; that it was killed is not, nor is bad health when another one answers."""
    toml = '[databases.a]\nurl = "postgresql://u@127.0.0.1:1/x"\n[services.bot]\n'
    state = canned_engine.containers["bot"]["State"]
    state["Health"] = {"Status": "unhealthy", "Log": []}
    sick = seen("service", toml=toml)
    assert [name for name, each in sick.items() if each.failed] == ["db.connect (a)"]
    assert sick["service.health (bot)"].because == "db.connect"

    state |= {"Status": "exited", "Running": False, "ExitCode": 137}
    killed = seen("service", toml=toml)
    assert [name for name, each in killed.items() if each.failed] == ["db.connect (a)", "service.state (bot)"]
