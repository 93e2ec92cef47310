"""What every command obeys: the envelope, the exit codes, who writes where, and how little `--help` costs."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime

import pytest

from opsctl.cli.app import COMMANDS
from opsctl.errors import ExitCode, OpsctlError

pytestmark = pytest.mark.end_to_end

NAMES = [name for name, *_ in COMMANDS]
HEAVY = (
    "psycopg",
    "boto3",
    "botocore",
    "sentry_sdk",
    "docker",
    "structlog",
    "pydantic",
    "pydantic_settings",
    "fastapi",
    "pyrage",
    "cryptography",
)
ENVELOPE = {"schema", "ok", "exit_code", "run_id", "started_at", "finished_at", "result", "error"}

FAILING = {
    "backup": (["backup"], 12),
    "list": (["list"], 13),
    "show": (["show", "latest"], 13),
    "verify": (["verify"], 13),
    "restore": (["restore", "latest"], 13),
    "export": (["export", "latest", "-o", "out"], 13),
    "prune": (["prune"], 13),
    "pin": (["pin", "latest"], 13),
    "unpin": (["unpin", "latest"], 13),
}
"""Each command with a repository that is a file and a server that does not answer."""


def loaded_by(run_opsctl, *arguments):
    """The modules in memory after opsctl has run, in the same process."""
    script = (
        "import sys\n"
        "from opsctl.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.stderr.write('\\n'.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=run_opsctl.environment(),
        cwd=run_opsctl.work,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage" in done.stdout
    return set(done.stderr.split("\n"))


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["backup", "--help"], ["restore", "-h"], ["list", "--help"]])
def test_help_loads_nothing_heavy(run_opsctl, arguments):
    """``--help`` answers at once: no driver, no cloud, no telemetry, no validation library is imported."""
    loaded = loaded_by(run_opsctl, *arguments)

    assert sorted(name for name in HEAVY if name in loaded) == []


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command_has_an_example(run_opsctl, name):
    """Every command explains itself with a line that can be copied, and names the common options."""
    run = run_opsctl(*name.split(), "--help")

    assert run.returncode == 0, run
    assert f"Example: opsctl {name}" in run.stdout
    for option in ("--json", "--quiet", "--config"):
        assert option in run.stdout
    assert run.stderr == ""


def test_help_lists_every_command(run_opsctl):
    """The overview is complete, and it is what ``opsctl`` alone prints."""
    text = run_opsctl("--help").stdout

    for name in NAMES:
        group, _, second = name.partition(" ")
        assert re.search(rf"^\W*{group}\b", text, re.MULTILINE), name
        if second:
            inside = run_opsctl(group, "--help").stdout
            assert re.search(rf"^\W*{second}\b", inside, re.MULTILINE), name
            assert run_opsctl(group).stdout == inside
    assert run_opsctl().stdout == text


def test_version(run_opsctl):
    """``--version`` is one line on stdout."""
    run = run_opsctl("--version")

    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(r"opsctl \d+\.\d+\S*\n", run.stdout)


# The document


def assert_envelope(run, command):
    document = json.loads(run.stdout)
    assert set(document) == ENVELOPE
    assert document["schema"] == f"opsctl.{command}/1"
    assert document["exit_code"] == run.returncode
    assert document["ok"] is (run.returncode == 0)
    assert re.fullmatch(r"[0-9a-f]{8,}", document["run_id"])
    started, finished = (datetime.fromisoformat(document[key]) for key in ("started_at", "finished_at"))
    assert started.tzinfo
    assert started <= finished
    if document["error"] is not None:
        assert set(document["error"]) == {"code", "message", "hint"}
        assert document["error"]["message"]
        assert not document["ok"]
    return document


@pytest.mark.parametrize("name", sorted(FAILING))
def test_failure_is_one_document_with_a_message_and_a_hint(run_opsctl, name):
    """On failure, too, stdout is exactly one JSON document; stderr is JSON lines about the same run."""
    (run_opsctl.work / "backups").write_text("a file")
    arguments, code = FAILING[name]
    run = run_opsctl(*arguments, "--json", url="postgresql://u@127.0.0.1:1/x")

    assert run.returncode == code, run
    document = assert_envelope(run, name)
    assert document["error"]["hint"]
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert lines[-1]["event"] == "run.failed"
    assert {line["run_id"] for line in lines} == {document["run_id"]}
    assert (lines[-1]["exit_code"], lines[-1]["code"]) == (code, document["error"]["code"])


def test_every_command_is_tried_above():
    """A new command joins this contract, or this test says that it is missing."""
    tried = {*FAILING, "demo"}

    assert tried <= set(NAMES)


@pytest.mark.parametrize("name", ["list", "show", "verify", "prune", "pin", "unpin"])
def test_success_is_one_document(run_opsctl, stored, name):
    """On success the same envelope has a result and no error."""
    run = run_opsctl(name, *(["latest"] if name in {"show", "pin", "unpin"} else []), "--json")

    assert run.returncode == 0, run
    document = assert_envelope(run, name)
    assert document["error"] is None
    assert isinstance(document["result"], dict)


def test_every_error_class_has_a_code_of_its_own():
    """Programs tell failures apart by a word and an exit code; both are documented in the tree of errors."""
    classes = OpsctlError.__subclasses__()

    assert len({each.code for each in classes}) == len(classes)
    assert {each.exit_code for each in classes} <= set(ExitCode)


# Usage errors


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["--json"], "opsctl"),
        (["nonsense", "--json"], "opsctl"),
        (["backup", "--nonsense", "--json"], "backup"),
        (["show", "--json"], "show"),
        (["restore", "--jobs", "0", "--json"], "restore"),
        (["restore", "--jobs", "many", "--json"], "restore"),
        (["--json", "list"], "list"),
        (["list", "--json", "a", "b", "c"], "list"),
    ],
)
def test_usage_error_keeps_the_contract(run_opsctl, arguments, command):
    """A command line that cannot be understood is 2, one document with ``--json``, and a line with a hint."""
    run = run_opsctl(*arguments)

    assert run.returncode == 2, run
    document = assert_envelope(run, command)
    assert document["error"]["code"] == "usage"
    assert "--help" in document["error"]["hint"]
    assert "Traceback" not in run.stderr


def test_usage_error_without_json_leaves_stdout_empty(run_opsctl):
    """Without ``--json`` nothing is on stdout; after ``--`` the word is an argument and no option."""
    for arguments in (["nonsense"], ["show"], ["restore", "--jobs", "0", "--", "--json"]):
        run = run_opsctl(*arguments)
        assert (run.returncode, run.stdout) == (2, ""), run
        (line,) = [json.loads(line) for line in run.stderr.splitlines()]
        assert (line["code"], line["exit_code"]) == ("usage", 2)
        assert "--help" in line["hint"]


# Configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[databases.a]\nulr = 'x'\n", "databases.a.ulr"),
        ("this is no TOML", "not valid TOML"),
        ("[databases.a]\n", "either url or url_env"),
        ("[databases.a]\nurl = 'mysql://x'\n", "postgresql://"),
        ("[repositories.a]\nurl = 'ftp://x'\n", "ftp"),
    ],
)
def test_configuration_errors_name_file_and_key(run_opsctl, text, message):
    """A mistake in opsctl.toml is 10; the message says where, never with a secret."""
    (run_opsctl.work / "opsctl.toml").write_text(text)
    run = run_opsctl("backup" if "databases" in text else "list", "--json")

    assert run.returncode == 10, run
    assert message in run.json["error"]["message"]


def test_no_database_configured(run_opsctl):
    """Without any configuration ``backup`` says what is enough to begin."""
    run = run_opsctl("backup", "--json")

    assert run.returncode == 10
    assert "DATABASE_URL" in run.json["error"]["hint"]


# stdout, stderr, --quiet


def test_streams_are_kept_apart(run_opsctl, stored):
    """The result is on stdout; on stderr, no terminal, every line is JSON, and there is at least one."""
    run = run_opsctl("list")

    assert stored.id in run.stdout
    assert "run.finished" not in run.stdout
    assert [json.loads(line)["event"] for line in run.stderr.splitlines()] == ["run.finished"]


def test_failure_leaves_stdout_empty(run_opsctl):
    """Without a result there is nothing on stdout: a script's variable stays empty."""
    run = run_opsctl("show", "latest")

    assert run.returncode == 14
    assert run.stdout == ""
    assert json.loads(run.stderr.splitlines()[-1])["message"]


@pytest.mark.parametrize("arguments", [["list"], ["show", "latest"], ["prune"], ["pin", "latest"]])
def test_quiet_says_nothing_on_success(run_opsctl, stored, arguments):
    """A cron job mails nothing unless something is wrong."""
    run = run_opsctl(*arguments, "--quiet")

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_quiet_backup(run_opsctl, database):
    """The command cron runs every night is silent when it worked and says why when it did not."""
    good = run_opsctl("backup", "-q", url=database.url)
    bad = run_opsctl("backup", "-q", url="postgresql://u@127.0.0.1:1/x")

    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert bad.returncode == 12
    assert "127.0.0.1:1" in bad.stderr


def test_log_format_can_be_chosen(run_opsctl, stored):
    """``OPSCTL_LOG_FORMAT`` overrides what the stream suggests."""
    run = run_opsctl("list", env={"OPSCTL_LOG_FORMAT": "console"})

    assert "run.finished" in run.stderr
    assert not run.stderr.startswith("{")


def test_no_colours_in_a_pipe(run_opsctl, stored):
    """What a program reads has no escape sequences, whatever the variables of a terminal say."""
    run = run_opsctl("list", env={"TERM": "xterm-256color", "OPSCTL_LOG_FORMAT": "console"})

    assert "\x1b" not in run.stdout + run.stderr


def test_debug_shows_where_a_failure_comes_from(run_opsctl):
    """``--debug`` adds the traceback to the log; without it there is none."""
    plain = run_opsctl("show", "latest")
    debug = run_opsctl("show", "latest", "--debug")

    assert "exception" not in json.loads(plain.stderr.splitlines()[-1])
    assert "choose" in debug.stderr


# A reader that leaves


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "latest"], ["export", "latest"]])
def test_closed_pipe_ends_quietly(run_opsctl, stored, arguments):
    """``opsctl list | head -1``: the reader is gone, and so is opsctl, without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    process = run_opsctl.start(*arguments, "--quiet" if arguments == ["export", "latest"] else "--debug", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 141, errors
    for sign in ("Traceback", "BrokenPipe", "Exception", "bug"):
        assert sign not in errors


def test_long_output_into_head(run_opsctl, stored):
    """The first line arrives, whatever happens to the rest."""
    process = run_opsctl.start("show", "latest")
    head = subprocess.run(["head", "-1"], stdin=process.stdout, capture_output=True, text=True, check=True)
    process.stdout.close()

    assert stored.id in head.stdout
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)
