"""Services on a real Docker engine: what is seen of them, their logs, and what a restart does."""

import functools
import json
import os
import signal
import stat
import time
from contextlib import contextmanager

import pytest
from waiting import wait_for

from opsctl.errors import ServiceFailed
from opsctl.services import Selector
from opsctl.services.docker import Docker
from opsctl.services.log_lines import LINE_BYTES

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("docker")]

CANARY = "sesame-open-up"
COMPOSE = f"""
version: "2.4"
x-common: &common
  image: local/busybox:1
  stop_grace_period: 1s
services:
  good:
    <<: *common
    command: sh -c 'for n in $$(seq 9999); do echo "out $$n"; sleep 0.1; echo "err $$n {CANARY}" >&2; sleep 0.5; done'
    environment: {{PRICE: "a$$$$b", API_TOKEN: {CANARY}}}
    env_file: [app.env]
    healthcheck: {{test: ["CMD", "true"], interval: 0.5s, timeout: 2s, retries: 3}}
  sick:
    <<: *common
    healthcheck: {{test: ["CMD-SHELL", "echo no disk; false"], interval: 0.5s, timeout: 2s, retries: 2}}
  loop:
    <<: *common
    command: sh -c 'echo boom; exit 3'
    restart: always
  plain:
    <<: *common
    command: sh -c 'trap "echo asked to stop" TERM; echo begun; while true; do sleep 0.2; done'
    stop_grace_period: 60s
  talker:
    <<: *common
    tty: true
    command: sh -c 'echo first; echo second >&2; sleep 1000'
"""


@pytest.fixture(scope="module")
def project(engine, tmp_path_factory):
    """A compose project with a service of each kind, up."""
    folder = tmp_path_factory.mktemp("saas")
    (folder / "docker-compose.yml").write_text(COMPOSE)
    (folder / "app.env").write_text("LEVEL=info\n")
    engine("docker-compose", "--project-name", "saas", "up", "--detach", cwd=folder)
    yield folder
    engine("docker-compose", "--project-name", "saas", "down", "--timeout", "0", cwd=folder)


@pytest.fixture
def opsctl(run_opsctl, engine, project):
    (run_opsctl.work / "opsctl.toml").write_text(
        "[services]\n"
        + "".join(f"[services.{name}]\n" for name in ("good", "sick", "loop", "talker"))
        + "[services.plain]\nstop_timeout_seconds = 1\nstable_seconds = 0.5\n"
    )

    def run(*arguments):
        return run_opsctl(*arguments, env={"DOCKER_HOST": engine.host})

    run.program = run_opsctl
    return run


def rows(opsctl):
    return {row["service"]: row for row in opsctl("services", "--json").json["result"]["services"]}


def test_each_service_is_seen_as_it_is(opsctl):
    """Healthy, unhealthy with what its check said, in a crash loop, and without a health check; no false drift."""
    wait_for(lambda: rows(opsctl)["sick"]["health"] == "unhealthy", "sick is unhealthy")
    found = wait_for(lambda: (r := rows(opsctl))["loop"]["restart_count"] > 1 and r, "loop was restarted")

    assert (found["good"]["state"], found["good"]["health"]) == ("running", "healthy")
    assert found["sick"]["health_output"] == "no disk"
    assert found["loop"]["exit_code"] in {3, None}  # between two ends it runs
    assert (found["plain"]["state"], found["plain"]["health"]) == ("running", "none")
    assert [row["drift"] for row in found.values()] == [{"status": "none", "differences": [], "reason": None}] * 5


def test_logs_of_several_services_by_time(opsctl, engine):
    """Streams and services in the order of their times; a container's secrets are masked; a terminal's lines too."""
    wait_for(lambda: "out 3" in engine("logs", "saas_good_1"), "good has written")
    lines = opsctl("logs", "good", "talker", "plain", "-n", "6", "--json").json["result"]["lines"]
    good = [each for each in lines if each["service"] == "good"]

    assert [each["at"] for each in lines] == sorted(each["at"] for each in lines)
    assert {each["service"] for each in lines} == {"good", "talker", "plain"}
    assert [each["stream"] for each in good] in (["stdout", "stderr"] * 3, ["stderr", "stdout"] * 3)
    assert {each["text"].partition(" *")[2] for each in good if each["stream"] == "stderr"} == {"**"}
    assert [each["text"] for each in lines if each["service"] == "talker"] == ["first", "second"]
    text = opsctl("logs", "good", "--grep", "^err", "-n", "2")
    assert CANARY not in text.stdout
    assert [line.split(" | ")[1].split()[0] for line in text.stdout.splitlines()] == ["err", "err"]


def test_a_long_line_is_one_line(opsctl, engine):
    """Docker stores it in pieces of 16 KiB, each with a time of its own, which is no part of the text."""
    script = "head -c 40000 /dev/zero | while read -r x; do :; done; printf '%040000d\\n' 7; printf '%070000d\\n' 8"
    engine("run", "--detach", "--name", "long", "local/busybox:1", "sh", "-c", script)
    try:
        wait_for(lambda: not engine.inspect("long")["State"]["Running"], "long has ended")
        lines = [each["text"] for each in opsctl("logs", "long", "--json").json["result"]["lines"]]
    finally:
        engine.remove("long")

    assert [(len(line), line.strip("0")) for line in lines[:1]] == [(40000, "7")]
    assert "".join(lines[1:]) == f"{8:070000}"
    assert len(lines[1]) >= LINE_BYTES


@contextmanager
def following(opsctl, engine, *arguments):
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell ignore it
    process = opsctl.program.start(
        "logs", *arguments, "-f", "--json", env={"DOCKER_HOST": engine.host}, preexec_fn=heeded
    )
    os.set_blocking(process.stdout.fileno(), False)
    seen = []

    def lines():
        while line := process.stdout.readline():
            seen.append(json.loads(line))
        return seen

    yield process, lines
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130


def test_following_goes_on_through_a_restart(opsctl, engine):
    """Every line once, in JSON lines, also those of the container's next life; Ctrl-C ends it with 130."""
    with following(opsctl, engine, "plain", "good", "-n", "0") as (_, lines):
        wait_for(lambda: [each for each in lines() if each["service"] == "good"], "good is followed")
        engine("restart", "--time", "1", "saas_plain_1")
        wait_for(lambda: [each for each in lines() if each["text"] == "begun"], "plain's next life is followed")
        count = len([each for each in lines() if each["service"] == "good"])
        wait_for(lambda: len([e for e in lines() if e["service"] == "good"]) > count + 2, "good goes on")

    plain = [each["text"] for each in lines() if each["service"] == "plain"]
    assert plain == ["asked to stop", "begun"]
    numbers = [int(e["text"].split()[1]) for e in lines() if e["service"] == "good" and e["stream"] == "stdout"]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_restart_waits_for_health_and_captures_first(opsctl, engine):
    before = engine.inspect("saas_good_1")["State"]["StartedAt"]
    run = opsctl("restart", "good", "--yes", "good", "--json")

    assert run.returncode == 0, run
    result = run.json["result"]
    assert result["after"][0]["health"] == "healthy"
    assert engine.inspect("saas_good_1")["State"]["StartedAt"] > before
    (path,) = (opsctl.program.state / "captures").iterdir()
    assert str(path) == result["capture"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert CANARY not in path.read_text()
    assert json.loads(path.read_text())["containers"]["saas_good_1"]["State"]["StartedAt"] == before


@pytest.mark.parametrize(("name", "said"), [("sick", "unhealthy: no disk"), ("loop", "again and again")])
def test_a_restart_that_does_not_help_says_so(opsctl, name, said):
    """Exit code 1, with how the service looks now, and where its state before the restart is."""
    run = opsctl("restart", name, "--yes", name, "--json")

    assert run.returncode == 1, run
    assert said in run.json["error"]["message"]
    assert run.json["result"]["capture"] in run.json["error"]["hint"]


def test_the_stop_timeout_is_the_configured_one(opsctl, engine):
    """A service that does not stop is asked, and killed after a second instead of compose's minute."""
    run = opsctl("restart", "plain", "--yes", "plain", "--json")

    assert run.returncode == 0, run
    assert engine("logs", "--tail", "2", "saas_plain_1").split("\n")[:2] == ["asked to stop", "begun"]
    assert run.json["result"]["duration_seconds"] < 30


def test_what_a_restart_does_not_apply(opsctl, engine, project):
    """A changed env file is named, by its variable only; a restart leaves it so; --recreate applies it."""
    (project / "app.env").write_text(f"LEVEL={CANARY}-2\nNEW=1\n")
    try:
        assert rows(opsctl)["good"]["drift"]["differences"] == [
            "variable LEVEL has another value",
            "variable NEW is new",
        ]
        restarted = opsctl("restart", "good", "--yes", "good")
        assert restarted.returncode == 0
        assert "not applied: variable LEVEL" in restarted.stdout
        assert CANARY not in restarted.stdout + restarted.stderr
        assert "LEVEL=info" in engine.inspect("saas_good_1")["Config"]["Env"]
        recreated = opsctl("restart", "good", "--recreate", "--yes", "good", "--json")
        assert recreated.returncode == 0, recreated
        result = recreated.json["result"]
        assert result["drift"]["status"] == "none", result["drift"]
        assert result["before"][0]["container_id"] != result["after"][0]["container_id"]
        assert "NEW=1" in engine.inspect("saas_good_1")["Config"]["Env"]
    finally:
        (project / "app.env").write_text("LEVEL=info\n")


def test_an_image_built_anew_is_drift(opsctl, engine):
    """The name is the same, what it means is not: a restart goes on with the old one."""
    engine("create", "--name", "copy", "local/busybox:1")
    old = engine("images", "--quiet", "--no-trunc", "local/busybox:1").strip()
    try:
        engine("commit", "--change", "ENV NEWER=1", "copy", "local/busybox:1")
        (difference,) = rows(opsctl)["plain"]["drift"]["differences"]
        assert "local/busybox:1 is another one by now" in difference
    finally:
        engine("tag", old, "local/busybox:1")
        engine.remove("copy")


def test_an_engine_that_hangs_does_not_hang_opsctl(opsctl, engine):
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        run = opsctl("services", "--json")
    finally:
        os.kill(engine.pid, signal.SIGCONT)

    assert run.returncode == 1
    assert run.json["error"]["code"] == "services_unreachable"
    assert "timed out" in run.json["error"]["message"]


@pytest.fixture
def docker(engine):
    runtime = Docker({"DOCKER_HOST": engine.host})
    yield runtime
    runtime.close()


@pytest.fixture
def container(docker, project):
    (found,) = docker.find(Selector("good", "saas"))
    return lambda command, **options: docker.start(found, command, **{"reads_input": False, **options})


def test_a_slow_reader_loses_nothing(container):
    """The engine throws away what is unread two seconds after a program's end; the script keeps it from that."""
    size = (4 << 20) + 2_000_000  # what opsctl buffers, and more than what the engine and the socket do
    running = container(["head", "-c", str(size), "/dev/zero"])
    pieces = running.chunks()
    first = next(pieces)
    time.sleep(3)
    total = len(first) + sum(map(len, pieces))
    code = running.wait()
    running.end()

    assert (total, code) == (size, 0)


def fill(running):
    while True:
        running.write(bytes(1 << 20))


def test_input_and_output_are_whole_and_exit_codes_are_told(container):
    """64 MiB in, counted inside; an end by a signal is negative; a program that wants no more breaks the pipe."""
    running = container(["sh", "-c", 'test "$(wc -c)" = 67108864 && exit 7'], reads_input=True)
    for _ in range(64):
        running.write(bytes(1 << 20))
    running.close_stdin()
    assert (running.wait(), list(running.stderr_lines())) == (7, [])
    running.end()
    refusing = container(["sh", "-c", "echo enough >&2; kill -9 $$"], reads_input=True)
    with pytest.raises(BrokenPipeError):
        fill(refusing)
    assert (refusing.wait(), list(refusing.stderr_lines())) == (-9, [b"enough"])
    refusing.end()


def test_output_cut_short_is_an_error(docker, engine):
    """A container that ends under a program: what had arrived is not taken for all of it."""
    engine("run", "--detach", "--name", "short", "local/busybox:1")
    (found,) = docker.find(Selector("short", container="short"))
    running = docker.start(found, ["sh", "-c", "echo some; sleep 100"], reads_input=False)
    pieces = running.chunks()
    engine.remove("short")
    with pytest.raises(ServiceFailed, match="broke off"):
        list(pieces)
    running.end()
