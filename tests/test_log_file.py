"""Logs where a collector wants them: in a file that others rotate, with a caller's fields, in another schema."""

import json
import os
import shutil

import pytest

from opsctl.telemetry.log_context import parse_context
from opsctl.telemetry.log_file import LogFile
from opsctl.telemetry.log_schemas import renamer

NOWHERE = "postgresql://me:hunter2-canary@127.0.0.1:1/app"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_gets_every_line_and_stderr_what_quiet_leaves(run_opsctl, saas, tmp_path):
    """A cron entry runs with --quiet and stays silent; the file tells of the run, readable by the group alone."""
    path = tmp_path / "opsctl.log"
    run = run_opsctl("backup", "--quiet", "--log-file", str(path), url=saas.url)

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    last = lines_of(path)[-1]
    assert (last["event"], last["command"], last["database"]) == ("run.finished", "backup", saas.name)
    assert last["repository"] == "local"
    assert last["backup_id"].startswith(saas.name)
    assert last["duration_seconds"] > 0
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_file_by_the_environment_holds_no_secret(run_opsctl, tmp_path):
    """The redactor comes before the file, tracebacks included."""
    path = tmp_path / "opsctl.log"
    run = run_opsctl("backup", "--debug", url=NOWHERE, env={"OPSCTL_LOG_FILE": str(path)})

    assert run.returncode == 12
    assert "run.failed" in path.read_text()
    assert "hunter2-canary" not in path.read_text() + run.stderr


@pytest.mark.parametrize("kind", ["folder", "missing"])
def test_a_file_that_cannot_be_written_costs_a_warning(run_opsctl, saas, tmp_path, kind):
    """No backup is lost to its log."""
    path = tmp_path if kind == "folder" else tmp_path / "no" / "such.log"
    run = run_opsctl("backup", "--quiet", "--log-file", str(path), url=saas.url)

    assert run.returncode == 0
    (line,) = [json.loads(line) for line in run.stderr.splitlines()]
    assert (line["event"], line["level"]) == ("log.unwritten", "warning")
    assert str(path) in line["message"]


def test_a_file_that_is_rotated_while_it_is_written(tmp_path):
    """Moved away by logrotate, or cut, or removed: the next line is in the file of that name."""
    path = tmp_path / "opsctl.log"
    file = LogFile(path)
    file.write("one")
    path.rename(tmp_path / "opsctl.log.1")
    file.write("two")
    shutil.copy(path, tmp_path / "copy")
    os.truncate(path, 0)  # copytruncate
    file.write("three")
    path.unlink()
    file.write("four")
    file.close()

    assert (tmp_path / "opsctl.log.1").read_text() == "one\n"
    assert (tmp_path / "copy").read_text() == "two\n"
    assert path.read_bytes() == b"four\n"


def test_a_callers_context_is_in_every_line(run_opsctl, saas, tmp_path):
    """Somebody who starts opsctl from a web request finds the request's id in each line; opsctl's own names stay."""
    path = tmp_path / "opsctl.log"
    context = json.dumps({"request_id": "r-1", "user_id": 7, "company_id": None, "run_id": "mine"})
    env = {"OPSCTL_LOG_CONTEXT": context, "OPSCTL_LOG_FILE": str(path)}
    run = run_opsctl("backup", "--json", url=saas.url, env=env)

    lines = lines_of(path)
    assert {(line["request_id"], line["user_id"], line["company_id"]) for line in lines} == {("r-1", 7, None)}
    assert {line["run_id"] for line in lines} == {run.json["run_id"]}
    assert [line["message"] for line in lines if line["event"] == "log.context"] == [
        "OPSCTL_LOG_CONTEXT: run_id: no name for a field of a caller's"
    ]


@pytest.mark.parametrize(
    ("text", "fields", "problem"),
    [
        ("", {}, None),
        ("request_id=r-1 user_id=7", {"request_id": "r-1", "user_id": "7"}, None),
        ("a='two words', b=2", {"a": "two words", "b": "2"}, None),
        ('{"a": {"b": [1]}, "c": true}', {"a": '{"b": [1]}', "c": True}, None),
        ("no pairs", {}, "neither"),
        ('{"a": ', {}, "no JSON object"),
        ("level=debug a=1", {"a": "1"}, "level"),
        ("_shown=1 a=1", {"a": "1"}, "_shown"),  # the marks of opsctl itself begin so
        (" ".join(f"k{n}={n}" for n in range(30)), {f"k{n}": str(n) for n in range(20)}, "first 20"),
    ],
)
def test_what_a_context_may_be(text, fields, problem):
    """A caller's mistake costs a field, never a run."""
    found, said = parse_context(text)
    assert found == fields
    assert said is None if problem is None else problem in said


RECORD = {
    "timestamp": "2026-11-24T03:00:01.250000Z",
    "level": "error",
    "event": "run.failed",
    "command": "backup",
    "database": "saasdb",
    "run_id": "abc",
    "message": "no connection",
    "code": "database_unreachable",
    "exit_code": 12,
    "duration_seconds": 1.5,
    "request_id": "r-1",
}


def test_the_elastic_common_schema():
    """Durations in nanoseconds, the error where ECS has it, a caller's fields under a name of their own."""
    found = renamer("ecs", callers=frozenset({"request_id"}), environment="production")(dict(RECORD))
    assert found["@timestamp"] == RECORD["timestamp"]
    assert (found["log.level"], found["message"]) == ("error", "run.failed: no connection")
    assert (found["event.duration"], found["event.outcome"]) == (1_500_000_000, "failure")
    assert (found["process.exit_code"], found["error.code"]) == (12, "database_unreachable")
    assert (found["db.name"], found["http.request.id"]) == ("saasdb", "r-1")
    assert (found["service.name"], found["service.environment"]) == ("opsctl", "production")
    assert found["opsctl.run_id"] == "abc"


def test_opentelemetrys_schema():
    """A log record as OTLP's JSON has it: severity as a number, the resource apart from the attributes."""
    found = renamer("otel", callers=frozenset({"request_id"}), environment=None)(dict(RECORD))
    assert found["Timestamp"] == "1795489201250000000"
    assert (found["SeverityText"], found["SeverityNumber"]) == ("ERROR", 17)
    assert found["Resource"]["service.name"] == "opsctl"
    attributes = found["Attributes"]
    assert (attributes["event.name"], attributes["error.type"]) == ("run.failed", "database_unreachable")
    assert (attributes["db.namespace"], attributes["request_id"]) == ("saasdb", "r-1")


def test_a_schema_is_chosen_by_the_environment(run_opsctl, saas):
    run = run_opsctl("list", "--json", url=saas.url, env={"OPSCTL_LOG_SCHEMA": "ecs"})
    last = json.loads(run.stderr.splitlines()[-1])
    assert (last["event.action"], last["opsctl.run_id"]) == ("run.finished", run.json["run_id"])


def test_an_unknown_schema_is_an_error(run_opsctl, saas):
    run = run_opsctl("list", url=saas.url, env={"OPSCTL_LOG_SCHEMA": "gelf"})
    assert run.returncode == 10
    assert "OPSCTL_LOG_SCHEMA" in run.stderr
