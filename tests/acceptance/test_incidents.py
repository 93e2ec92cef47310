"""An incident and a bundle of real containers: what they keep, and that no secret of theirs is in it."""

import io
import json
import re
import time
from contextlib import ExitStack

import pytest

from opsctl.bundle import read_bundle

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("docker")]

COMPOSE = """
version: "2.4"
services:
  bot:
    image: local/busybox:1
    stop_grace_period: 0s
    command: ["sh", "-c", 'echo "begun with $$BOT_TOKEN"; echo "POST /login password=cnry-log"; env; sleep 1000', "sh",
              "--api-key", "cnry-argument"]
    environment:
      BOT_TOKEN: cnry-token
      SECRET_KEY_BASE: cnry-base
      DATABASE_URL: postgresql://app:cnry%2Furl@db/saas
      HARMLESS: plain-to-see
    labels: {deploy.token: cnry-label}
    healthcheck: {test: ["CMD-SHELL", "echo Authorization: Bearer cnry-health; false"], interval: 0.5s, retries: 1}
"""


@pytest.fixture
def bot(engine, tmp_path):
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    engine("docker-compose", "--project-name", "incident", "up", "--detach", cwd=tmp_path)
    deadline = time.monotonic() + 30
    while engine.inspect("incident_bot_1")["State"]["Health"]["Status"] != "unhealthy":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield "incident_bot_1"
    engine("docker-compose", "--project-name", "incident", "down", "--timeout", "0", cwd=tmp_path)


def test_real_containers_leave_no_secret(run_opsctl, engine, bot, saas):
    """Variables, arguments, labels, what a health check and the program itself print, and a statement under way."""
    (run_opsctl.work / "opsctl.toml").write_text(
        "[databases.saasdb]\nurl_env = 'DATABASE_URL'\n[services.bot]\ncompose_project = 'incident'\n"
    )

    def opsctl(*words):
        run = run_opsctl(*words, url=saas.url, env={"DOCKER_HOST": engine.host})
        assert run.returncode == 0, run
        return run.stdout + run.stderr

    with ExitStack() as stack:
        connection = stack.enter_context(saas.connect(autocommit=False))
        connection.execute("select 'cnry-sql' as password")
        outputs = [opsctl("incident", "open", "the bot is ill"), opsctl("bundle", "latest", "-o", "t.tar.gz")]
    outputs += [opsctl("incident", "show", "--json"), opsctl("incident", "export")]
    members = read_bundle(io.BytesIO((run_opsctl.work / "t.tar.gz").read_bytes()))
    outputs += [data.decode() for data in members.values()]
    outputs += [path.read_text() for path in (run_opsctl.state / "incidents").iterdir()]
    found = [each[max(0, at.start() - 60) : at.end() + 20] for each in outputs for at in re.finditer("cnry", each)]
    assert found == []

    log = members[f"logs/{bot}.txt"].decode()
    assert "begun with ***" in log
    assert "POST /login password=***" in log
    [service] = json.loads(members["services.json"])
    assert service["state"]["health"] == "unhealthy"
    assert "HARMLESS=***" in service["described"]["Config"]["Env"]
    sessions = json.loads(members["activity_saasdb.json"])["sessions"]
    assert any("select '…' as password" in each["query"] for each in sessions)
    statuses = {each["id"]: each["status"] for each in json.loads(members["doctor.json"])["result"]["checks"]}
    assert statuses["service.health"] == "crit"
