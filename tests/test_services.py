"""Services: what the program makes of what an engine says. Real engines are in tests/acceptance."""

import json
import random
import stat
import struct
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.errors import Refused
from opsctl.services import HealthCheck, LogLine, Service, ServiceState
from opsctl.services.budget import RestartBudget
from opsctl.services.capture import MASK, masked, secrets_of
from opsctl.services.compose import ImageNow, drift, project_of
from opsctl.services.docker_exec import _split, wrapped
from opsctl.services.log_lines import interleaved, messages, stamp_of
from opsctl.services.restart import CRASHES, Watch, patience

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CANARY = "sesame-open-up"

# Log lines


def stamp(second, nanosecond=0):
    return f"2026-11-24T11:18:{second:02}.{nanosecond:09}Z"


def test_a_message_in_several_frames_is_one_line():
    """Docker cuts lines at 16 KiB and gives each piece a time, which is no part of the text."""
    first, second, third = (f"{stamp(n)} ".encode() for n in range(3))
    chunks = [first + b"a" * 16384, second + b"b\n", third + b"\n", third + b"no end"]
    found = [(moment.stamp, text) for moment, text in messages(chunks, framed=True)]

    assert found == [(stamp(0), "a" * 16384 + "b"), (stamp(2), ""), (stamp(2), "no end")]


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20), max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_terminals_output_is_cut_anywhere(lines, source: random.Random):
    """Whatever the pieces, the same lines come out, in their order."""
    data = b"".join(f"{stamp(n)} {line}\r\n".encode() for n, line in enumerate(lines))
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(5))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    assert [text for _, text in messages(pieces, framed=False)] == lines


def line(service, second, nanosecond=0):
    at = datetime(2026, 11, 24, 11, 18, second, tzinfo=UTC)
    return LogLine(service, service, stamp(second, nanosecond), at, "stdout", "text")


@given(st.lists(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 999_999_999)), max_size=9), max_size=4))
def test_services_are_interleaved_by_time(times):
    """All lines come, by time to the nanosecond, and each service's own in their order."""
    sources = [[line(str(n), *each) for each in sorted(own)] for n, own in enumerate(times)]
    merged = list(interleaved([iter(own) for own in sources]))

    assert [each.stamp for each in merged] == sorted(each.stamp for own in sources for each in own)
    for n, own in enumerate(sources):
        assert [each for each in merged if each.service == str(n)] == own


def test_times_are_written_as_stamps_are():
    assert stamp_of(datetime(2026, 11, 24, 12, 18, 5, 7, tzinfo=UTC) - timedelta(hours=1)) == stamp(5, 7000)


# A program inside a container


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=10), st.integers(0, 400))
def test_streams_are_taken_apart(frames, cut):
    """Both streams whole, wherever what was received ends."""
    data = b"".join(struct.pack(">BxxxL", kind, len(piece)) + piece for kind, piece in frames)
    out, err, rest = _split(data[:cut])
    more_out, more_err, left = _split(rest + data[cut:])

    assert left == b""
    assert out + more_out == b"".join(piece for kind, piece in frames if kind == 1)
    assert err + more_err == b"".join(piece for kind, piece in frames if kind == 2)


@pytest.mark.parametrize(("reads_input", "code"), [(True, 0), (True, 7), (False, 0), (False, 143)])
def test_the_script_marks_the_end_of_the_output(reads_input, code):
    """The mark and the exit code are the last of the output; secrets come by the first lines of the input."""
    program = ["sh", "-c", f'cat; printf "%s" "$PGPASSWORD"; echo complaint >&2; exit {code}']
    with subprocess.Popen(
        wrapped(program, "MARK", reads_input=reads_input),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(b"PGPASSWORD=a '\"$b\\n c \n\n" + (b"data\n" if reads_input else b""))
        process.stdin.flush()
        if reads_input:
            process.stdin.close()
            process.stdin = None
        expected = (b"data\n" if reads_input else b"") + b"a '\"$b\\n c " + f"MARK{code:03}".encode()
        written = process.stdout.read()
        errors = process.stderr.read().split(b"\n")
        process.terminate()

    assert written == expected
    assert errors[0].startswith(f"MARK:{process.pid}:".encode())
    assert errors[1:] == [b"complaint", b"", b"MARK", b""]


def test_the_script_ends_a_program_whose_reader_is_gone():
    """A dump does not go on for nobody: the end of its input is the end of the program, and nothing is left over."""
    process = subprocess.Popen(
        wrapped(["sleep", "100"], "MARK", reads_input=False),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdin.write(b"\n")
    written, _ = process.communicate(timeout=20)

    assert written == b"MARK143"
    assert process.returncode == 0


# How a service is judged


def service(**state):
    values = {"status": "running", "health": "none", "restart_count": 0, "oom_killed": False, "exit_code": None}
    values |= {"started_at": NOW, "finished_at": None, "image": "local/saas:1", **state}
    return Service("bot", "1", "saas_bot_1", "saas", "bot", NOW, ServiceState(**values))


CHECK = HealthCheck(1, 1, 3, 0)


def test_a_service_without_a_health_check_has_to_stay_up():
    watch = Watch(stable_seconds=5)
    later = NOW + timedelta(seconds=3)

    assert watch.judge([service()], 0)[0] == "waiting"
    assert watch.judge([service()], 4.9)[0] == "waiting"
    assert watch.judge([service(started_at=later, restart_count=1)], 5)[0] == "waiting"
    assert watch.judge([service(started_at=later, restart_count=1)], 10)[0] == "ready"


@pytest.mark.parametrize(
    ("state", "outcome", "said"),
    [
        ({"health": "healthy"}, "ready", ""),
        ({"health": "starting"}, "waiting", "still starting"),
        ({"health": "unhealthy", "health_output": "no disk"}, "failed", "no disk"),
        ({"status": "exited", "exit_code": 137, "oom_killed": True}, "failed", "exit code 137, out of memory"),
        ({"status": "restarting", "exit_code": 3}, "waiting", "exit code 3"),
    ],
)
def test_a_service_is_what_its_containers_are(state, outcome, said):
    """The worst of them counts, and its state is told."""
    one, other = (replace(service(**each), health_check=CHECK) for each in (state, {"health": "healthy"}))
    for both in ([one, other], [other, one]):
        found, why = Watch(stable_seconds=5).judge(both, 0)
        assert found == outcome
        assert said in why


def test_a_crash_loop_is_told_from_a_first_failure():
    """The restarts since the beginning count, not those of a container's whole life."""
    watch = Watch(stable_seconds=5)
    outcomes = [watch.judge([service(restart_count=10 + n, started_at=NOW)], 0)[0] for n in range(CRASHES + 1)]

    assert outcomes == ["waiting"] * CRASHES + ["failed"]
    assert watch.judge([], 0)[0] == "failed"


def test_the_wait_is_as_long_as_the_health_check_may_need():
    assert patience([service()], None) == 60
    assert patience([replace(service(), health_check=HealthCheck(30, 10, 3, 20))], None) == 180
    assert patience([service()], 7) == 7


# How often


def test_a_restart_budget_is_spent_and_comes_back(tmp_path):
    """Three in 30 minutes, for each service, remembered by the file alone; the fourth is told when it may be."""
    path = tmp_path / "state" / "restarts.json"

    def budget():
        return RestartBudget(path, 3, timedelta(minutes=30))

    for minute in range(3):
        budget().spend("bot", NOW + timedelta(minutes=minute))
    with pytest.raises(Refused, match="3 times in the last 30 minutes") as refused:
        budget().check("bot", NOW + timedelta(minutes=3))
    assert "2026-11-24T12:30:00.000Z" in refused.value.hint
    with pytest.raises(Refused):
        budget().spend("bot", NOW - timedelta(days=1))  # a clock that was set back gives none away
    budget().spend("api", NOW)
    budget().spend("bot", NOW + timedelta(minutes=30))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{")
    budget().spend("bot", NOW)


# What may be shown


def test_a_description_shows_no_variables_value(canned_engine):
    """Nothing a container's environment holds, nor a secret argument, wherever it stands in the description."""
    container = canned_engine.containers["bot"]
    container["Config"]["Cmd"] = ["serve", "--db-password", "hunter22", "--key=abcdef", "-v", "SECRET=zyxwvu"]
    container["Config"]["Labels"]["note"] = f"uses {CANARY}"
    container["State"]["Health"]["Log"] = [{"Output": f"login with {CANARY} failed"}]
    shown = masked(container)
    text = json.dumps(shown)

    assert [word for word in (CANARY, "pa%40ss-word", "hunter22", "abcdef", "zyxwvu") if word in text] == []
    assert shown["Config"]["Env"] == [f"{name}={MASK}" for name in ("PATH", "API_TOKEN", "DATABASE_URL", "LEVEL")]
    assert shown["Config"]["Cmd"] == ["serve", "--db-password", MASK, f"--key={MASK}", "-v", f"SECRET={MASK}"]
    assert shown["Args"] == ["--token", MASK]
    assert shown["State"]["StartedAt"] == container["State"]["StartedAt"]
    assert set(secrets_of(container)) == {CANARY, "pa%40ss-word", "pa@ss-word"}


# What has changed


def container(canned_engine, *env):
    found = canned_engine.containers["bot"]
    found["Config"]["Env"] = list(env)
    return found


def wanted(**environment):
    return {"image": "local/saas:1", "environment": environment}


def test_drift_names_what_a_restart_would_not_apply(canned_engine):
    """Image and variables, by name only; what the image itself sets is no drift, nor is compose's escaped dollar."""
    image = ImageNow("sha256:75bec5", {"PATH": "/bin"})
    present = container(canned_engine, "PATH=/bin", "PRICE=$5", "LEVEL=info", "OLD=1")

    assert drift(present, wanted(PRICE="$$5", LEVEL="info", OLD="1"), image).status == "none"
    assert drift(present, wanted(PRICE="$$5", LEVEL="debug", NEW="x", SHELL=None), image).differences == (
        "variable LEVEL has another value",
        "variable NEW is new",
        "variable SHELL is new",
        "variable OLD is not set any more",
    )
    assert drift(present, {**wanted(PRICE="$$5", LEVEL="info", OLD="1"), "image": "local/saas:2"}, image) == drift(
        present, {"image": "local/saas:2", "environment": ["PRICE=$$5", "LEVEL=info", "OLD=1"]}, image
    )
    (difference,) = drift(present, None, ImageNow("sha256:other")).differences
    assert "pulled or built since" in difference


def test_what_cannot_be_compared_is_unknown(canned_engine):
    found = drift(container(canned_engine), "there is no compose program", ImageNow("sha256:75bec5"))

    assert (found.status, found.reason) == ("unknown", "there is no compose program")


def test_compose_files_are_found_by_the_labels(canned_engine, tmp_path):
    """Relative ones are relative to the project's folder, wherever opsctl runs; the configured file wins."""
    labels = canned_engine.containers["bot"]["Config"]["Labels"]
    labels["com.docker.compose.project.working_dir"] = "/srv/saas"
    labels["com.docker.compose.project.config_files"] = "a.yml,/etc/b.yml"
    own = project_of(canned_engine.containers["bot"])
    assert own.files == ("/srv/saas/a.yml", "/etc/b.yml")
    assert own.options[:4] == ["--project-name", "saas", "--file", "/srv/saas/a.yml"]
    assert project_of(canned_engine.containers["bot"], tmp_path / "c.yml").files == (f"{tmp_path}/c.yml",)


# The commands


@pytest.fixture
def opsctl(run_opsctl, canned_engine):
    """The program with the canned engine; ``bot`` and ``api`` are configured, and ``gone``, which has no container."""
    (run_opsctl.work / "opsctl.toml").write_text(
        "[services.bot]\n[services.api]\nstable_seconds = 0.1\nrestart_budget = 1\n[services.gone]\n"
    )

    def run(*arguments, **options):
        return run_opsctl(*arguments, **{"env": {"DOCKER_HOST": canned_engine.host, "PATH": "/nowhere"}, **options})

    run.work, run.state = run_opsctl.work, run_opsctl.state
    return run


def test_services_are_listed_with_their_states(opsctl, canned_engine):
    """The configured ones, with those that have no container; without any, every compose project's."""
    canned_engine.containers["bot"]["State"] |= {
        "Status": "exited",
        "Running": False,
        "ExitCode": 137,
        "OOMKilled": True,
    }
    rows = opsctl("services", "--json").json["result"]["services"]

    assert [(row["service"], row["state"], row["exit_code"], row["oom_killed"]) for row in rows] == [
        ("bot", "exited", 137, True),
        ("api", "running", None, False),
        ("gone", "missing", None, False),
    ]
    assert rows[1]["drift"]["status"] == "unknown"
    text = opsctl("services").stdout
    assert "exit code 137; out of memory" in text
    (opsctl.work / "opsctl.toml").write_text("")
    assert [row["service"] for row in opsctl("services", "--json").json["result"]["services"]] == ["api", "bot"]
    canned_engine.containers.clear()
    assert opsctl("services", "--json").json["result"] == {"services": []}


def test_logs_are_the_newest_lines_of_all_without_secrets(opsctl):
    """Both streams of both services by time; a container's own secrets are masked; --grep finds the newest matches."""
    lines = opsctl("logs", "bot", "api", "-n", "3", "--json").json["result"]["lines"]

    assert [(each["service"], each["stream"], each["text"]) for each in lines] == [
        (name, stream, f"line {n} ***")
        for n, stream in ((2, "stdout"), (3, "stderr"), (4, "stdout"))
        for name in ("bot", "api")
    ]
    text = opsctl("logs", "bot", "--grep", "line [01]", "-n", "1").stdout
    assert text == "2026-11-24 11:18:01 bot | line 1 ***\n"
    since = opsctl("logs", "bot", "--since", "2026-11-24T11:18:03Z", "--json").json["result"]["lines"]
    assert [each["at"] for each in since] == ["2026-11-24T11:18:03.000Z", "2026-11-24T11:18:04.000Z"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["logs", "bto"], 10, "There is no service 'bto'"),
        (["logs", "gone"], 1, "no container of the service gone"),
        (["logs", "bot", "--grep", "("], 2, "regular expression"),
        (["logs", "bot", "--since", "yesterday"], 2, "not a point in time"),
        (["logs"], 2, "SERVICE"),
        (["restart", "bot"], 16, "needs a confirmation"),
        (["restart", "bot", "--yes", "api"], 16, "concerns 'bot'"),
        (["restart", "bot", "--recreate", "--yes", "bot"], 1, "no compose program"),
    ],
)
def test_what_cannot_be_done_is_said(opsctl, canned_engine, arguments, code, said):
    run = opsctl(*arguments, "--json")

    assert run.returncode == code, run
    assert said in run.json["error"]["message"]
    assert run.json["error"]["hint"]
    assert not [each for each in canned_engine.requests if "restart" in each]


def test_a_failed_follow_is_one_json_line(opsctl):
    """With -f --json every line is a document of its own, that of a failure too."""
    run = opsctl("logs", "bto", "-f", "--json")

    (only,) = run.stdout.splitlines()
    assert json.loads(only)["exit_code"] == run.returncode == 10


def test_a_restart_captures_first_and_is_counted(opsctl, canned_engine):
    """The capture is private, holds the log and no secret; the second restart is over the budget and not done."""
    first = opsctl("restart", "api", "--yes", "api", "--json")
    second = opsctl("restart", "api", "--yes", "api", "--json")

    assert first.returncode == 0, first
    result = first.json["result"]
    assert result["after"][0]["state"] == "running"
    (path,) = (opsctl.state / "captures").iterdir()
    assert result["capture"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    capture = json.loads(path.read_text())
    assert [each["text"] for each in capture["logs"]] == [f"line {n} ***" for n in range(5)]
    assert capture["containers"]["saas_api_1"]["State"]["Status"] == "running"
    assert [each for each in (CANARY, "pa%40ss-word", "info") if each in path.read_text().replace('"at"', "")] == []
    assert second.returncode == 16
    assert len([each for each in canned_engine.requests if "restart" in each]) == 1


def test_without_docker_only_services_fail(run_opsctl, tmp_path):
    """One clear line and a hint, exit code 1; what needs no Docker does not notice."""
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none"}
    for arguments in (["services"], ["logs", "bot"], ["restart", "bot", "--yes", "bot"]):
        run = run_opsctl(*arguments, "--json", env=env)
        assert run.returncode == 1
        assert run.json["error"]["code"] == "services_unreachable"
        assert "Docker does not answer: No such file or directory" in run.json["error"]["message"]
        assert "DOCKER_HOST" in run.json["error"]["hint"]
    assert run_opsctl("list", "--json", env=env, url="postgresql://nobody@localhost/x").returncode == 0


def test_a_service_is_found_in_one_way(run_opsctl):
    (run_opsctl.work / "opsctl.toml").write_text('[services.bot]\ncontainer = "bot"\ncompose_service = "bot"\n')
    run = run_opsctl("services", "--json")

    assert run.returncode == 10
    assert "services.bot" in run.json["error"]["message"]
