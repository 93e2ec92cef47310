"""The program: it listens where it may, answers whom it should, and ends in order."""

import json
import signal
import time
from http.client import HTTPConnection

import pytest

pytestmark = pytest.mark.end_to_end


def answer(port, path="/", **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def started(run_opsctl, *arguments, url=None, env=None):
    process = run_opsctl.start("serve", "--port", "0", *arguments, url=url, env=env)
    for line in process.stderr:
        record = json.loads(line)
        if record["event"] == "serve.started":
            return process, int(record["url"].rstrip("/").rpartition(":")[2])
    raise AssertionError(process.communicate())


def test_it_serves_until_sigterm(run_opsctl, saas):
    """What a backup left is shown and told; another name than ours is refused; SIGTERM is exit code 0."""
    backed_up = run_opsctl("backup", "--json", url=saas.url).json["result"]["backups"][0]
    process, port = started(run_opsctl, "--json", url=saas.url)
    try:
        deadline = time.monotonic() + 20
        while json.loads(answer(port, "/api/list")[1])["result"] is None:
            assert time.monotonic() < deadline, "the repository was not listed"
            time.sleep(0.1)
        listed = json.loads(answer(port, "/api/list")[1])
        assert [each["id"] for each in listed["result"]["backups"]] == [backed_up["id"]]
        assert backed_up["id"] in answer(port)[1]
        assert f'opsctl_backup_last_success_timestamp_seconds{{database="{saas.name}"' in answer(port, "/metrics")[1]
        assert answer(port, "/healthz") == (200, "ok\n")
        assert answer(port, Host="evil.example")[0] == 421
    finally:
        process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(stdout)["result"]["requests"] >= 5


def test_a_token_is_asked_for(run_opsctl, saas):
    """Beyond this host it listens with a token only; without one nothing is told but that it lives."""
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl_env = "DATABASE_URL"\n[serve]\nhost = "0.0.0.0"\n'
    )
    refused = run_opsctl("serve", "--port", "0", "--json", url=saas.url)
    assert (refused.returncode, refused.json["error"]["code"]) == (16, "refused")
    with (run_opsctl.work / "opsctl.toml").open("a") as file:
        file.write('token_env = "STATUS_TOKEN"\n')
    process, port = started(run_opsctl, url=saas.url, env={"STATUS_TOKEN": "hunter2-canary-hunter2-canary"})
    try:
        assert answer(port)[0] == 401
        assert answer(port, Authorization="Bearer wrong")[0] == 401
        assert answer(port, Authorization="Bearer hunter2-canary-hunter2-canary")[0] == 200
        assert answer(port, "/healthz")[0] == 200
    finally:
        process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "hunter2-canary-hunter2-canary" not in stderr
