"""The whole loop on a real engine: a container dies, doctor names it, the runbook restarts it, a timeline remains."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("docker")]

COMPOSE = """
version: "2.4"
services:
  bot:
    image: local/busybox:1
    stop_grace_period: 1s
    command: sh -c 'echo "bot token sesame-open-up ready"; while true; do sleep 0.2; done'
    environment: {API_TOKEN: sesame-open-up}
"""
CANARY = "sesame-open-up"


def _at_terminal():
    path = Path(__file__).parents[1] / "test_terminal.py"
    spec = importlib.util.spec_from_file_location("terminal", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Terminal


Terminal = _at_terminal()


@pytest.fixture
def bot(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crew")
    (folder / "docker-compose.yml").write_text(COMPOSE)
    engine("docker-compose", "--project-name", "crew", "up", "--detach", cwd=folder)
    yield "crew_bot_1"
    engine("docker-compose", "--project-name", "crew", "down", "--timeout", "0", cwd=folder)


def test_a_killed_bot_is_named_restarted_and_remembered(engine, bot, run_opsctl):
    """Doctor → its scenario → asked → restarted → green → a timeline with before and after, and how long it took."""
    (run_opsctl.work / "opsctl.toml").write_text(
        '[services.bot]\ncompose_project = "crew"\nstable_seconds = 1\nstop_timeout_seconds = 1\n'
    )
    environment = {"DOCKER_HOST": engine.host}

    def opsctl(*words):
        return run_opsctl(*words, env=environment)

    engine("kill", bot)
    found = opsctl("doctor", "service", "--json").json["result"]
    assert (found["verdict"]["cause"], found["verdict"]["target"]) == ("service.state", "bot")
    assert found["verdict"]["scenario"] == "bot-is-down"
    refused = opsctl("runbook", "run", "bot-is-down", "--json")
    assert refused.returncode == 16
    assert not engine.inspect(bot)["State"]["Running"]

    start = run_opsctl.start
    run_opsctl.start = lambda *words, url=None, **options: start(*words, url=url, env=environment, **options)
    terminal = Terminal(run_opsctl, ["runbook", "run", "bot-is-down"], None)
    try:
        terminal.wait_for("Run it? [y/N, s to skip]")
        assert "$ opsctl restart bot" in terminal.shown
        terminal.type("y")
        assert terminal.finish() == 0, terminal.shown
    finally:
        terminal.close()
        run_opsctl.start = start
    assert engine.inspect(bot)["State"]["Running"]
    assert "service.state (bot): crew_bot_1 runs" in terminal.shown
    assert opsctl("doctor", "service.state").returncode == 0

    timeline = opsctl("incident", "show", "latest", "--json").stdout
    exported = opsctl("incident", "export", "latest", "--md").stdout
    assert "| service.state (bot) | crit | ok |" in exported
    assert "| Resolved | " in exported
    assert "after **" in exported
    assert opsctl("incident", "verify", "latest").returncode == 0
    assert CANARY not in timeline + exported + terminal.shown + terminal.stdout + refused.stdout
    again = opsctl("runbook", "run", "bot-is-down", "--json").json["result"]
    assert [each["state"] for each in again["steps"]] == ["done", "skipped"]  # it runs: nothing is asked
    assert json.loads(timeline)["result"] is not None
