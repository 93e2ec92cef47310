"""Doctor on a real stack in Docker: a database, an api and a bot; each trouble is one cause, and its remedy works."""

import os
import shlex
import signal
import subprocess
import time

import pytest
from waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("docker")]

CANARY = "sesame-open-up"
COMPOSE = f"""
version: "2.4"
services:
  db:
    image: local/postgres:15
    environment: {{POSTGRES_PASSWORD: {CANARY}}}
  api:
    image: local/postgres:15
    restart: always
    stop_grace_period: 1s
    environment: {{PGPASSWORD: {CANARY}}}
    env_file: [app.env]
    command: sh -c 'cd /tmp && echo up > index.html && exec busybox httpd -f -p 8000'
    healthcheck: {{test: "psql -h db -U postgres -qAtc 'select 1'", interval: 1s, timeout: 2s, retries: 2}}
  bot:
    image: local/busybox:1
    restart: always
    stop_grace_period: 1s
    mem_limit: 64m
    volumes: ["./bot:/bot"]
    command: /bot/run
    healthcheck: {{test: ["CMD", "sh", "-c", "cat /bot/queue"], interval: 1s, timeout: 2s, retries: 2}}
"""
OTHERS = ["memory", "clock", "disk.space", "disk.inodes", "db.disk"]
"""Checks of the host these tests run on, which may be in trouble of its own."""

BOT = """#!/bin/sh
[ -e /bot/token ] || { echo "no token in /bot/token"; exit 3; }
[ -e /bot/leak ] && x=leak && while true; do x=$x$x; done
while true; do sleep 0.2; done
"""


class Stack:
    """A compose project, made by compose v1, or by v2 where ``plugin`` is its DOCKER_CONFIG."""

    def __init__(self, engine, folder, plugin=None):
        self.engine, self.folder = engine, folder
        self.env = {"DOCKER_HOST": engine.host, **({"DOCKER_CONFIG": str(plugin)} if plugin else {})}
        self._program, self._sign = ("compose", "-") if plugin else ("docker-compose", "_")
        (folder / "bot").mkdir(parents=True)
        (folder / "docker-compose.yml").write_text(COMPOSE)
        (folder / "app.env").write_text("LEVEL=info\n")
        (folder / "bot/run").write_text(BOT)
        (folder / "bot/run").chmod(0o755)
        for name in ("token", "queue"):
            (folder / "bot" / name).touch()
        self.compose("up", "--detach")
        wait_for(lambda: {self.health(each) for each in ("api", "bot")} == {"healthy"}, "the stack is healthy")

    def compose(self, *words):
        return self.engine(self._program, *words, cwd=self.folder, **self.env)

    def container(self, service):
        return f"{self.folder.name}{self._sign}{service}{self._sign}1"

    def inspect(self, service):
        return self.engine.inspect(self.container(service))

    def health(self, service):
        return self.inspect(service)["State"].get("Health", {}).get("Status")

    def address(self, service):
        (network,) = self.inspect(service)["NetworkSettings"]["Networks"].values()
        return network["IPAddress"]

    def psql(self, sql):
        return self.engine("exec", "--env", f"PGPASSWORD={CANARY}", self.container("api"), "psql", "-h", "db", "-U",
                           "postgres", "-qAtc", sql).strip()  # fmt: skip


@pytest.fixture(scope="module")
def stack(engine, tmp_path_factory):
    made = Stack(engine, tmp_path_factory.mktemp("saas"))
    yield made
    made.compose("down", "--timeout", "0")


@pytest.fixture
def opsctl(run_opsctl, stack):
    return configured(run_opsctl, stack)


def configured(run_opsctl, stack):
    """``opsctl(…)`` for a stack, ``opsctl.doctor(…)``, and ``opsctl.follow(remedy)``."""
    (run_opsctl.work / "password").write_text(CANARY)
    (run_opsctl.work / "password").chmod(0o600)
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl = "postgresql://postgres@db/postgres"\npassword_file = "password"\nservice = "db"\n'
        + "".join(f'[services.{name}]\ncompose_project = "{stack.folder.name}"\n' for name in ("db", "api", "bot"))
        + f'[services.api.http]\nurl = "http://{stack.address("api")}:8000/index.html"\n'
        f'[repositories.local]\nurl = "{stack.folder}/backups"\n[doctor]\ndisabled = {OTHERS}\n'
    )

    def run(*arguments):
        return run_opsctl(*arguments, env=stack.env)

    def follow(alarm):
        """The command of a remedy as it is printed; a restart is confirmed as by a person."""
        words = shlex.split(alarm["remedy"]["command"])
        assert words[0] == "opsctl", words
        done = run(*words[1:], *(["--yes", words[2]] if words[1] == "restart" else []))
        assert done.returncode == 0, done
        return done.stdout

    if not (stack.folder / "backups").exists():
        assert run("backup").returncode == 0
    run.doctor, run.follow, run.program = (lambda *words: run("doctor", *words, "--json")), follow, run_opsctl
    return run


def alarms(run):
    return [each for each in run.json["result"]["checks"] if each["status"] not in {"ok", "skip"}]


def only_alarm(run, name, target):
    """The one alarm there is, and the verdict's cause; no secret is told."""
    assert [(each["id"], each["target"]) for each in alarms(run)] == [(name, target)], run
    (alarm,) = alarms(run)
    verdict = run.json["result"]["verdict"]
    assert (verdict["cause"], verdict["target"], run.returncode) == (name, target, 2)
    assert CANARY not in run.stdout + run.stderr
    return alarm


def skipped(run, because):
    return {(each["id"], each["target"]) for each in run.json["result"]["checks"] if each["because"] == because}


def is_green(opsctl):
    return lambda: opsctl.doctor().returncode == 0


def test_a_healthy_stack_raises_no_alarm(opsctl, stack):
    """Exit code 0, with at most three connections; how long it took is printed."""
    stack.psql("alter system set log_connections = on")
    stack.psql("select pg_reload_conf()")
    wait_for(lambda: stack.psql("show log_connections") == "on", "the server logs its connections")
    logged = len(connections(stack))
    started = time.monotonic()
    run = opsctl.doctor()
    seconds = time.monotonic() - started
    opened = connections(stack)[logged:]

    assert (run.returncode, alarms(run)) == (0, []), run
    assert run.json["result"]["counts"]["ok"] > 20
    assert 1 <= len([each for each in opened if "application_name=opsctl" in each]) <= 3
    print(f"all checks of a healthy stack: {seconds:.2f} s")  # noqa: T201


def connections(stack):
    words = ["docker", "logs", stack.container("db")]
    done = subprocess.run(words, env=stack.engine.environment, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    return [line for line in lines if "connection authorized" in line]


def test_a_stopped_database_is_one_alarm(opsctl, stack):
    """db.connect with the container's story; the api that is unhealthy without it, its address, its session: skipped.

    The remedy starts it, and everything is well again.
    """
    stack.engine("stop", "--time", "1", stack.container("db"))
    wait_for(lambda: stack.health("api") == "unhealthy", "the api misses its database")
    started = time.monotonic()
    run = opsctl.doctor()
    seconds = time.monotonic() - started
    alarm = only_alarm(run, "db.connect", "saasdb")

    assert (alarm["code"], alarm["details"]["reason"]) in {(word, "service.state") for word in ("stopped", "killed")}
    assert alarm["message"].startswith(f"{stack.container('db')} has ended ")
    assert skipped(run, "db.connect") >= {
        ("db.blocked", "saasdb"),
        ("service.state", "db"),
        ("service.health", "db"),
        ("service.health", "api"),
        ("service.crash_loop", "bot"),
        ("http.answer", "api"),
    }
    print(f"a stopped database is found in {seconds:.2f} s")  # noqa: T201
    opsctl.follow(alarm)
    wait_for(is_green(opsctl), "all is well again")


def test_a_killed_bot(opsctl, stack):
    """`docker kill` is no end a restart policy acts on: the bot stays down, and its check is the cause."""
    stack.engine("kill", stack.container("bot"))
    alarm = only_alarm(opsctl.doctor(), "service.state", "bot")

    assert alarm["code"] == "killed"
    assert "exit code 137 (SIGKILL" in alarm["message"]
    opsctl.follow(alarm)
    assert is_green(opsctl)()


def test_a_crash_loop_is_found_at_the_first_look(opsctl, stack):
    """Between two lives or in one: the same cause; its remedy shows what to correct, and the restart works then."""
    (stack.folder / "bot/token").unlink()
    stack.engine("restart", "--time", "1", stack.container("bot"))
    wait_for(lambda: stack.inspect("bot")["RestartCount"] >= 3, "the bot was restarted three times")
    alarm = only_alarm(opsctl.doctor(), "service.crash_loop", "bot")
    text = opsctl.follow(alarm)

    assert "no token in /bot/token" in text
    (stack.folder / "bot/token").touch()
    assert "`opsctl restart bot`" in alarm["remedy"]["text"]
    opsctl.follow({"remedy": {"command": "opsctl restart bot"}})
    assert is_green(opsctl)()


def test_an_unhealthy_bot(opsctl, stack):
    """What its health check said is the message; a restart helps once the reason is gone."""
    (stack.folder / "bot/queue").unlink()
    wait_for(lambda: stack.health("bot") == "unhealthy", "the bot is unhealthy")
    alarm = only_alarm(opsctl.doctor(), "service.health", "bot")

    assert "/bot/queue" in alarm["message"]
    (stack.folder / "bot/queue").touch()
    opsctl.follow(alarm)
    assert is_green(opsctl)()


def test_out_of_memory(opsctl, stack):
    """The kernel's kill at 8 MiB is told from any other; a new limit comes with the recreation the remedy names."""
    compose, leak = stack.folder / "docker-compose.yml", stack.folder / "bot/leak"
    compose.write_text(COMPOSE.replace("64m", "8m"))
    leak.touch()
    stack.compose("up", "--detach", "bot")
    wait_for(lambda: stack.inspect("bot")["State"]["OOMKilled"], "the kernel killed it")
    alarm = only_alarm(opsctl.doctor(), "service.oom", "bot")

    assert "8.0 MiB" in alarm["message"]
    compose.write_text(COMPOSE)
    leak.unlink()
    opsctl.follow(alarm)
    assert stack.inspect("bot")["HostConfig"]["Memory"] == 64 << 20
    assert is_green(opsctl)()


@pytest.mark.parametrize("version", [1, 2])
def test_drift_is_a_warning_and_its_remedy_applies_it(run_opsctl, engine, tmp_path, request, version):
    """By both composes: a changed env file is named, by its variable; a restart leaves it so, the remedy does not."""
    made = request.getfixturevalue("stack") if version == 1 else None
    if made is None:
        made = Stack(engine, tmp_path / "saas2", request.getfixturevalue("compose_plugin"))
    try:
        drifts(configured(run_opsctl, made), made)
    finally:
        if version == 2:
            made.compose("down", "--timeout", "0")


def drifts(opsctl, stack):
    assert is_green(opsctl)(), opsctl.doctor()
    (stack.folder / "app.env").write_text(f"LEVEL={CANARY}-2\n")
    opsctl.follow({"remedy": {"command": "opsctl restart api"}})
    run = opsctl.doctor()
    (alarm,) = alarms(run)

    assert (run.returncode, alarm["id"], alarm["target"], alarm["status"]) == (1, "service.drift", "api", "warn")
    assert alarm["details"]["differences"] == ["variable LEVEL has another value"]
    assert CANARY not in run.stdout + run.stderr
    before = stack.inspect("api")["Id"]
    opsctl.follow(alarm)
    found = opsctl.doctor("service.drift.api")
    assert found.returncode == 0, found
    assert stack.inspect("api")["Id"] != before
    assert f"LEVEL={CANARY}-2" in stack.inspect("api")["Config"]["Env"]


def test_no_docker_is_one_alarm(opsctl, stack):
    """Docker is the cause, and what it runs is skipped, the database in it too."""
    run = opsctl.program("doctor", "--json", env={**stack.env, "DOCKER_HOST": "unix:///tmp/nobody"})
    only_alarm(run, "docker", "engine")

    assert {("db.connect", "saasdb"), ("service.state", "bot"), ("http.answer", "api")} <= skipped(run, "docker")


def test_a_hanging_engine_is_one_alarm(opsctl, stack):
    """It ends, and says which of them does not answer."""
    os.kill(stack.engine.pid, signal.SIGSTOP)
    try:
        run = opsctl.doctor()
    finally:
        os.kill(stack.engine.pid, signal.SIGCONT)

    assert [(each["id"], each["status"]) for each in alarms(run)] == [("docker", "unknown")], run
    assert run.returncode == 3
