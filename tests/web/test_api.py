"""The documents are those of the command line; requests have names, limits, and a line in the log."""

import json
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families  # noqa: TID253

TOKEN = "a-token-of-some-length"


def test_list_is_what_the_program_prints(sixty_days, story, page_of, run_opsctl):
    """Backups, copies, evidence and damage, merged from what each repository told, as ``list`` merges them."""
    run = run_opsctl("list", "--json", "--config", sixty_days / "opsctl.toml")
    served = page_of(sixty_days, now=story.NOW).get("/api/list").json()
    assert served["schema"] == run.json["schema"] == "opsctl.list/1"
    assert served.keys() == run.json.keys()
    assert served["result"]["backups"] == run.json["result"]["backups"]
    assert len(served["result"]["backups"]) == 119
    assert run.json["result"].items() <= served["result"].items()


def test_one_repository_alone(sixty_days, run_opsctl):
    """``list --repository`` is how the page asks: its name is checked, only it is asked."""
    assert {
        tuple(b["repositories"])
        for b in run_opsctl("list", "--json", "--config", sixty_days / "opsctl.toml", "-r", "offsite").json["result"][
            "backups"
        ]
    } == {("offsite",)}
    refused = run_opsctl("list", "--json", "--config", sixty_days / "opsctl.toml", "--repository", "ofsite")
    assert (refused.returncode, refused.json["error"]["hint"]) == (10, "Did you mean 'offsite'?")


def test_the_other_documents(sixty_days, story, page_of):
    """Doctor's last run with its exit code, the runs that are asked for, the incidents, all in the usual envelope."""
    client = page_of(sixty_days, now=story.NOW)
    doctor = client.get("/api/doctor").json()
    assert (doctor["schema"], doctor["exit_code"], doctor["ok"]) == ("opsctl.doctor/1", 2, False)
    assert doctor["result"]["verdict"]["cause"] == "db.connect"
    assert doctor["result"]["at"] == "2026-11-24T15:17:00.000Z"
    history = client.get(
        "/api/history", params={"outcome": "failed", "database": "billing", "command": "backup", "limit": 2}
    ).json()
    assert [run["database"] for run in history["result"]["runs"]] == ["billing", "billing"]
    assert history["result"]["runs"][0]["error_code"] == "database_unreachable"
    incidents = client.get("/api/incident/list").json()
    assert (incidents["schema"], len(incidents["result"]["incidents"])) == ("opsctl.incident-list/1", 2)
    assert incidents["result"]["incidents"][0]["status"] == "acknowledged"
    one = client.get("/api/list", params={"database": "billing", "limit": 3}).json()["result"]["backups"]
    assert [each["database"] for each in one] == ["billing"] * 3


def test_metrics_are_opsctls_and_the_servers_own(sixty_days, story, page_of):
    """A scrape finds what runs left and how this server answers; made-up paths make no new series."""
    client = page_of(sixty_days, now=story.NOW)
    for path in ("/", "/nothing", "/nothing/else", "/healthz"):
        client.get(path)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in text_string_to_metric_families(answer.text)}
    states = {(s.labels["check"], s.labels["target"]): s.value for s in found["opsctl_check_state"].samples}
    assert states["db.connect", "billing"] == 2
    requests = {
        (s.labels["route"], s.labels["status"]): s.value
        for s in found["opsctl_http_requests"].samples
        if s.name.endswith("_total")
    }
    assert requests == {("/", "200"): 1, ("other", "404"): 2, ("/healthz", "200"): 1}
    counted = [s for s in found["opsctl_http_request_duration_seconds"].samples if s.name.endswith("_count")]
    assert sum(s.value for s in counted) == 4


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/history?limit=0", 400, "limit"),
        ("/api/history?outcome=fine", 400, "outcome"),
        ("/?refresh=1", 400, "refresh"),
        ("/api/show", 404, "Not Found"),
        ("/docs", 404, "Not Found"),
        ("/openapi.json", 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(sixty_days, story, page_of, path, status, words):
    """A bad question gets its own answer, never a traceback."""
    answer = page_of(sixty_days, now=story.NOW).get(path)
    assert (answer.status_code, words in answer.text) == (status, True)


def test_nothing_can_be_changed(sixty_days, story, page_of):
    """Read only: there is no other method, and HEAD answers as GET."""
    client = page_of(sixty_days, now=story.NOW)
    for path in ("/", "/api/list", "/metrics", "/healthz"):
        assert [client.request(method, path).status_code for method in ("POST", "PUT", "DELETE")] == [405] * 3
        assert client.head(path).status_code == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("req-1234_ABC.5:6", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("x" * 129, False),
        ('a" level="error', False),
        ("a\x1b[31mb", False),
        ("", False),
    ],
)
def test_a_request_has_a_name(tmp_path, story, page_of, given, kept):
    """A caller's sane name is kept, any other replaced; it stands in the answer and its document."""
    (tmp_path / "opsctl.toml").write_text(story.CONFIG)
    answer = page_of(tmp_path, now=story.NOW).get("/api/history", headers={"X-Request-ID": given})
    name = answer.headers["x-request-id"]
    assert (name == given) is kept
    assert kept or (len(name) == 16 and int(name, 16) >= 0)
    assert answer.json()["run_id"] == name


def test_a_token_is_asked_for(sixty_days, story, page_of):
    """As a bearer or as the password of anybody; /healthz needs none; a wrong one says nothing."""
    client = page_of(sixty_days, now=story.NOW, token=TOKEN)
    asked = client.get("/")
    assert (asked.status_code, asked.headers["www-authenticate"]) == (401, 'Basic realm="opsctl", charset="UTF-8"')
    assert "saasdb" not in asked.text
    assert asked.headers["x-content-type-options"] == "nosniff"
    for wrong in ("", "x", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
        assert client.get("/metrics", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
        assert client.get("/", auth=("me", wrong)).status_code == 401
    for junk in ("Basic !!!", "Basic", "Bearer", TOKEN, "Digest x"):
        assert client.get("/", headers={"Authorization": junk}).status_code == 401
    assert client.get("/metrics", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert client.get("/", auth=("whoever", TOKEN)).status_code == 200
    assert client.get("/healthz").text == "ok\n"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9778", 200),
        ("[::1]:9778", 200),
        ("localhost", 200),
        ("LOCALHOST.:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:9778", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("", 421),
        ("[", 421),
    ],
)
def test_only_our_own_names_are_answered(tmp_path, story, page_of, host, status):
    """A page elsewhere that lets its name point here (DNS rebinding) gets nothing."""
    (tmp_path / "opsctl.toml").write_text(story.CONFIG)
    client = page_of(tmp_path, now=story.NOW)
    for path in ("/", "/api/history", "/metrics"):
        assert client.get(path, headers={"Host": host}).status_code == status
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_every_request_has_its_line_in_the_log(sixty_days, story, page_of, capsys):
    """With its name, never its query; a failure inside is one more line, and a plain answer."""
    import structlog

    from opsctl.telemetry.logs import LogStyle, configure_logs
    from opsctl.telemetry.recent import Recent
    from opsctl.telemetry.redact import Redactor

    class Broken:
        def listed(self):
            raise RuntimeError("hunter2-canary")

    import sys

    client = page_of(sixty_days, now=story.NOW, catalog=Broken())
    configure_logs(
        style=LogStyle("json"),
        quiet=False,
        debug=False,
        redactor=Redactor(["hunter2-canary"]),
        recent=Recent(),
        stream=sys.stderr,
        path=None,
    )
    try:
        client.get("/metrics?token=secret", headers={"X-Request-ID": "mine"})
        answer = client.get("/")
    finally:
        structlog.reset_defaults()
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")
    err = capsys.readouterr().err
    assert "secret" not in err
    assert "hunter2" not in err
    lines = [json.loads(line) for line in err.splitlines()]
    scrape, bug, page = lines
    wanted = {"event": "http.request", "method": "GET", "path": "/metrics", "status": 200, "request_id": "mine"}
    assert wanted.items() <= scrape.items()
    assert (bug["event"], bug["request_id"]) == ("http.bug", page["request_id"])
    assert (page["status"], page["level"]) == (500, "error")
    assert timedelta(seconds=page["duration_seconds"]) >= timedelta(0)
