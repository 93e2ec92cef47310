"""Logs: JSON lines for machines, readable text on a terminal, nothing with --quiet; errors a person can act on."""

import json
import os
import pty
from datetime import datetime

import pytest

NOWHERE = "postgresql://me@127.0.0.1:1/app"
FIELDS = {"timestamp", "level", "event", "run_id", "command"}


def log_lines(stderr):
    lines = [json.loads(line) for line in stderr.splitlines()]
    for line in lines:
        assert line.keys() >= FIELDS, line
        assert datetime.fromisoformat(line["timestamp"]).utcoffset().total_seconds() == 0
    return lines


def on_a_terminal(run_opsctl, *arguments, url, env=None, stdout_too=True):
    """The exit code, and what a person sees; with ``stdout_too`` false, of stderr only."""
    parent, child = pty.openpty()
    options = {"stderr": child, **({"stdout": child} if stdout_too else {})}
    process = run_opsctl.start(*arguments, url=url, env={"COLUMNS": "200", "TERM": "xterm", **(env or {})}, **options)
    os.close(child)
    shown = b""
    try:
        while data := os.read(parent, 65536):
            shown += data
    except OSError:
        pass  # how a terminal says that its other end is closed
    os.close(parent)
    return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["backup", "list", "verify", "prune"])
def test_every_line_is_json_with_its_run(run_opsctl, saas, command):
    """Off a terminal every line is one JSON object that says when, what, and in which run of which command."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    run = run_opsctl(command, "--json", url=saas.url)
    lines = log_lines(run.stderr)
    assert {line["command"] for line in lines} == {command}
    assert {line["run_id"] for line in lines} == {run.json["run_id"]}
    assert [line["event"] for line in lines].count("run.finished") == 1
    assert lines[-1]["event"] == "run.finished"
    assert lines[-1]["exit_code"] == 0
    assert lines[-1]["duration_seconds"] >= 0


def test_end_line_of_a_backup_names_it(run_opsctl, saas):
    """The last line is enough to know what was done."""
    run = run_opsctl("backup", "--json", url=saas.url)
    (backup,) = run.json["result"]["backups"]
    line = log_lines(run.stderr)[-1]
    assert (line["database"], line["backup_id"], line["bytes"]) == (saas.name, backup["id"], backup["bytes"])


def test_end_line_of_a_failure_says_why(run_opsctl):
    """A failed run ends with one line that has the exit code, the error's code, message and hint."""
    run = run_opsctl("backup", "--json", url=NOWHERE)
    (line,) = log_lines(run.stderr)
    assert line["event"] == "run.failed"
    assert line["level"] == "error"
    assert line["exit_code"] == 12
    assert {key: line[key] for key in ("code", "message", "hint")} == run.json["error"]


def test_every_run_has_an_id_of_its_own(run_opsctl):
    """Two runs never share an id."""
    assert len({log_lines(run_opsctl("backup", url=NOWHERE).stderr)[-1]["run_id"] for _ in range(3)}) == 3


@pytest.mark.parametrize("command", ["backup", "list", "verify", "prune"])
def test_quiet_says_nothing_on_success(run_opsctl, saas, command):
    """What a program prints is mailed by cron: a run that went well prints nothing on either stream."""
    assert run_opsctl("backup", "--quiet", url=saas.url).stderr == ""
    run = run_opsctl(command, "--quiet", url=saas.url)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_quiet_still_says_what_failed(run_opsctl):
    """A failure is what --quiet is quiet for."""
    run = run_opsctl("backup", "--quiet", url=NOWHERE)
    assert run.returncode == 12
    assert log_lines(run.stderr)[-1]["event"] == "run.failed"


def test_console_format_off_a_terminal(run_opsctl, saas):
    """OPSCTL_LOG_FORMAT=console gives readable lines in a pipe, without colours."""
    run = run_opsctl("backup", url=saas.url, env={"OPSCTL_LOG_FORMAT": "console"})
    assert run.returncode == 0
    assert "run.finished" in run.stderr
    assert "{" not in run.stderr
    assert "\x1b" not in run.stderr


def test_json_format_on_a_terminal(run_opsctl, saas):
    """OPSCTL_LOG_FORMAT=json wins over the terminal."""
    code, shown = on_a_terminal(run_opsctl, "backup", url=saas.url, env={"OPSCTL_LOG_FORMAT": "json"}, stdout_too=False)
    assert code == 0
    assert '"event": "run.finished"' in shown


def test_unknown_format_is_an_error(run_opsctl, saas):
    """A format that does not exist is named with those that do."""
    run = run_opsctl("backup", "--json", url=saas.url, env={"OPSCTL_LOG_FORMAT": "xml"})
    assert run.returncode == 10
    assert "OPSCTL_LOG_FORMAT" in run.json["error"]["message"]
    assert "console" in run.json["error"]["message"]


def test_terminal_shows_text(run_opsctl, saas):
    """A person reads sentences, not JSON."""
    code, shown = on_a_terminal(run_opsctl, "backup", url=saas.url)
    assert code == 0
    assert f"Backed up {saas.name}" in shown
    assert '{"' not in shown
    assert "Traceback" not in shown
    assert "run.finished" not in shown  # the outcome is on the screen already


def test_error_on_a_terminal(run_opsctl):
    """An error is what happened and what to do, once, without a traceback and without JSON."""
    code, shown = on_a_terminal(run_opsctl, "backup", url=NOWHERE)
    assert code == 12
    assert shown.count("Error:") == 1
    assert shown.count("Hint:") == 1
    assert shown.count("Connection refused") == 1
    assert "Traceback" not in shown
    assert '{"' not in shown


def test_debug_shows_a_traceback_without_values(run_opsctl, saas, tmp_path):
    """--debug adds the traceback; the values of variables stay out of it, on a terminal and in JSON."""
    (run_opsctl.work / "file").touch()
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.app]\nurl_env = "DATABASE_URL"\n[repositories.odd]\nurl = "file/below"\n'
    )
    code, shown = on_a_terminal(run_opsctl, "backup", "--debug", url=saas.url)
    assert code == 13
    assert "Error:" in shown
    assert "Traceback (most recent call last)" in shown
    assert "locals" not in shown
    run = run_opsctl("backup", "--debug", url=saas.url)
    line = log_lines(run.stderr)[-1]
    assert line["exception"][0]["exc_type"]
    assert '"locals"' not in run.stderr
    assert run_opsctl.state.name not in json.dumps(line["exception"]), "a variable's value"


def test_failure_without_debug_has_no_traceback(run_opsctl):
    """What a person can act on needs no traceback."""
    run = run_opsctl("backup", url=NOWHERE)
    assert "Traceback" not in run.stderr
    assert "exception" not in log_lines(run.stderr)[-1]


def test_closed_pipe_ends_quietly(run_opsctl, saas):
    """`opsctl list | head -0` prints no error about the pipe."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    read, write = os.pipe()
    os.close(read)
    process = run_opsctl.start("list", url=saas.url, stdout=write)
    os.close(write)
    _, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr
    assert "Exception" not in stderr


def test_full_disk_for_the_output(run_opsctl, saas):
    """A result that cannot be printed is no success, and no traceback either."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = run_opsctl.start("list", "--json", url=saas.url, stdout=full)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode not in {0, 70}
    assert "Traceback" not in stderr
