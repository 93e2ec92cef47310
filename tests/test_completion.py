"""Completion at a shell: what is offered where, from files alone, and in the shells themselves."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.cli.app import COMMANDS
from opsctl.cli.complete import WORDS, main, split, understood
from opsctl.cli.completion import SCRIPTS
from opsctl.cli.known import Known
from opsctl.manifest_cache import ManifestCache

TABLE = json.loads(WORDS.read_text())
OLD, NEW = "saasdb-20261101T030000Z-aaaa", "saasdb-20261102T030000Z-bbbb"
CONFIG = """\
[databases.saasdb]
url = "postgresql://saasdb"
[databases."my shop"]
url = "postgresql://shop"
[repositories.local]
url = "here"
[repositories.offsite]
url = "s3://bucket/prefix"
[services.bot]
[[checks]]
id = "queue"
sql = "select 1"
database = "saasdb"
[runbook]
path = "runbook.md"
[state]
path = "state"
"""
RUNBOOK = "## Bot is down\n\n```sh observe\nopsctl doctor\n```\n\n```sh change id=again\nopsctl restart bot\n```\n"


@pytest.fixture
def folder(tmp_path):
    """A configuration, two backups here, one in a bucket that was listed before, an incident."""
    there = tmp_path / "place"
    (there / "state/incidents").mkdir(parents=True)
    (there / "opsctl.toml").write_text(CONFIG)
    (there / "runbook.md").write_text(RUNBOOK)
    (there / "state/incidents/20261124T031500Z-beef.jsonl").touch()
    for name in (OLD, NEW, ".half.partial"):
        (there / "here/saasdb" / name).mkdir(parents=True)
        (there / "here/saasdb" / name / "manifest.json").touch()
    (there / "here/saasdb/orphan").mkdir()
    shop = {"my%20shop/shop-20261103T030000Z-cccc/manifest.json": ("etag", b"{}")}
    ManifestCache(there / "state").save("s3://bucket/prefix", "my%20shop", shop)
    ManifestCache(there / "state").save("s3://bucket/other", "my%20shop", {"a/b/manifest.json": ("etag", b"{}")})
    return there


@pytest.fixture
def offered(folder, monkeypatch, capsysbinary):
    """``offered("opsctl sh")``: what a shell is told, in the folder."""
    monkeypatch.chdir(folder)
    for name in ("OPSCTL_CONFIG", "OPSCTL_STATE_DIR", "DATABASE_URL", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)

    def ask(line):
        main(line)
        kind, *lines = capsysbinary.readouterr().out.decode().splitlines()
        return kind if kind == "files" else [line.partition("\t")[0] for line in lines]

    return ask


def test_what_is_offered_where(offered):
    """Each word of a command line is completed with what may stand there, the newest backups first."""
    assert "show" in offered("opsctl ")
    assert "incident" in offered("opsctl ")
    assert offered("opsctl incident o") == ["open"]
    assert offered("opsctl show ") == ["latest", "shop-20261103T030000Z-cccc", NEW, OLD]
    assert offered("opsctl show latest:") == ["latest:saasdb", "latest:my shop"]
    assert offered(f"opsctl verify {NEW} sa") == [OLD]
    assert offered("opsctl backup 'my") == ["my shop"]
    assert offered("opsctl backup saasdb ") == ["my shop"]
    assert offered("opsctl list -r ") == ["local", "offsite"]
    assert offered("opsctl list --repository=o") == ["--repository=offsite"]
    assert offered("opsctl repository check ") == ["local", "offsite"]
    assert offered("opsctl restart ") == ["bot"]
    assert offered("opsctl logs -n 5 -f ") == ["bot"]
    assert offered("opsctl explain own") == ["own.queue"]
    assert "db.connect" in offered("opsctl doctor db.con")
    assert offered("opsctl doctor -f n") == ["nagios"]
    assert offered("opsctl runbook run ") == ["bot-is-down"]
    assert offered("opsctl runbook run bot-is-down --confirm ") == ["step-1", "again"]
    assert offered("opsctl incident show ") == ["latest", "20261124T031500Z-beef"]
    assert offered("opsctl export latest -o ") == "files"
    assert offered("opsctl prune --plan=") == "files"
    assert offered("opsctl backup --new") == ["--new-server"]
    assert offered("opsctl backup --new-server --new") == []
    assert "--confirm" in offered("opsctl runbook run x --confirm a --co")
    assert offered("opsctl show -- -") == []
    assert offered("opsctl nonsense ") == []
    assert offered("PGPORT=1 opsctl unp") == ["unpin"]
    assert offered("opsctl completion ") == ["bash", "zsh", "fish"]


def test_a_confirmation_is_not_completed(offered):
    """``--yes`` names what will be changed: somebody has to write that who means it."""
    assert offered("opsctl restore latest --yes ") == []
    assert offered("opsctl restart bot --yes=") == []


def test_another_configuration_is_the_one_that_is_named(offered, folder):
    """``--config`` on the command line counts; one that is broken offers what needs none, and says nothing."""
    (folder / "other.toml").write_text('[databases.other]\nurl = "postgresql://x"\n')
    assert offered("opsctl backup --config other.toml ") == ["other"]
    (folder / "opsctl.toml").write_text("[broken")
    assert offered("opsctl sho") == ["show"]
    assert main("opsctl backup ") is None


def test_without_a_file_the_environment_tells(offered, folder, monkeypatch):
    """DATABASE_URL, from .env too, and ./backups: as for every other command."""
    (folder / "opsctl.toml").unlink()
    (folder / ".env").write_text("DATABASE_URL=postgresql://u@h/fromenv\n")
    monkeypatch.setenv("OPSCTL_STATE_DIR", str(folder / "state"))
    (folder / "here").rename(folder / "backups")

    assert offered("opsctl backup ") == ["fromenv"]
    assert offered("opsctl show ") == ["latest", NEW, OLD]
    assert "bot-is-down" in offered("opsctl runbook show ")


@given(st.text(max_size=30).map(lambda text: f"opsctl {text}"))
def test_no_line_is_too_strange(typed):
    """Whatever is typed, open quotes and control characters included, it is understood as something."""
    words = split(typed)
    assert understood(words, TABLE).command in TABLE["commands"]


def test_every_command_is_in_the_table():
    assert {name for name, _, _ in COMMANDS} <= TABLE["commands"].keys()


def test_state_of_another_folder_is_not_read(folder):
    """A relative state folder is relative to the file, as everywhere."""
    assert Known(str(folder / "opsctl.toml")).incidents == ["20261124T031500Z-beef"]


def test_a_tab_loads_little(run_opsctl):
    """Neither Typer nor Rich nor a library that checks things: a person waits for each tab."""
    script = "import sys; from opsctl.__main__ import main; main(); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script, "__complete", "opsctl show "],
        env=run_opsctl.environment(),
        cwd=run_opsctl.work,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("words\nlatest")
    assert not {"typer", "rich", "pydantic", "structlog", "psycopg", "boto3"} & set(done.stderr.split())


@pytest.fixture
def environment(folder, run_opsctl, tmp_path):
    """The program as `opsctl` on PATH, as the shells call it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "opsctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m opsctl "$@"\n')
    (programs / "opsctl").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return run_opsctl.environment(env={"PATH": path, "OPSCTL_STATE_DIR": None, "TERM": "xterm", "COLUMNS": None})


BASH = """
offered() {
    COMP_LINE=$1 COMP_POINT=${#1}; shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _opsctl opsctl "${@: -1}"
    printf '%s\\n' "${COMPREPLY[*]}"
}
offered "opsctl unp" opsctl unp
offered "opsctl show latest:sa" opsctl show latest : sa
offered "opsctl doctor --format=ju" opsctl doctor --format = ju
offered "opsctl backup m" opsctl backup m
offered "opsctl prune --plan op" opsctl prune --plan op
"""


def test_bash(folder, environment):
    """Bash splits words at colons and equals signs, and wants spaces quoted."""
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPTS["bash"].read_text() + BASH],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == ["unpin", "saasdb", "junit", r"my\ shop", "opsctl.toml"]
    assert done.stderr == ""


# In the shells, as somebody types


@contextmanager
def shell(arguments, folder, environment):
    """``tab("opsctl sh")``: the line in an interactive shell after that and a tab."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(
        arguments, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)

    def read_until(wanted):
        shown, deadline = "", time.monotonic() + 30
        while wanted not in shown and time.monotonic() < deadline:
            if select.select([master], [], [], 1)[0]:
                text = os.read(master, 65536).decode("utf-8", "replace")
                shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\r\x07]", "", text)
        assert wanted in shown, shown
        return shown

    def tab(typed, wanted):
        os.write(master, f"{typed}\t".encode())
        read_until(wanted)
        os.write(master, b"\x15")

    def run(line):
        os.write(master, f"{line}; echo do''ne\n".encode())
        read_until("\ndone")

    try:
        yield run, tab
    finally:
        process.kill()
        process.wait()
        os.close(master)


TYPED = {
    "opsctl unp": "opsctl unpin ",
    "opsctl show saasdb-20261101": f"opsctl show {OLD} ",
    "opsctl show latest:sa": "opsctl show latest:saasdb ",
    "opsctl backup m": r"opsctl backup my\ shop ",
    'opsctl backup "m': 'opsctl backup "my shop" ',
    "opsctl doctor --format=ju": "opsctl doctor --format=junit ",
    "opsctl list --repository of": "opsctl list --repository offsite ",
    "opsctl prune --plan ops": "opsctl prune --plan opsctl.toml ",
    "opsctl prune --plan=ops": "opsctl prune --plan=opsctl.toml ",
}


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("arguments", "load"),
    [
        (["bash", "--norc", "-i"], 'eval "$(opsctl completion bash 2>/dev/null)"'),
        (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(opsctl completion zsh 2>/dev/null)"'),
    ],
    ids=["bash", "zsh"],
)
def test_tab(folder, environment, arguments, load):
    """What somebody types and a tab make the whole word, with bash's and zsh's own quoting."""
    with shell(arguments, folder, environment) as (run, tab):
        run(load)
        for typed, line in TYPED.items():
            tab(typed, line)


@pytest.mark.acceptance
def test_zsh_finds_it_in_fpath(folder, environment, tmp_path):
    """As a file of that name among zsh's functions, which is where packages put it; the first tab loads it."""
    shutil.copy(SCRIPTS["zsh"], tmp_path / "_opsctl")
    with shell(["zsh", "-f", "-i"], folder, environment) as (run, tab):
        run(f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D")
        tab("opsctl unp", "opsctl unpin ")


@pytest.mark.acceptance
def test_fish(folder, environment):
    """Fish is told the whole word, and what each means."""

    def offered(line):
        script = f"opsctl completion fish 2>/dev/null | source; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", script],
            cwd=folder,
            env={**environment, "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    assert offered("opsctl unp")[0].startswith("unpin\t")
    assert offered("opsctl show ") == ["latest", "shop-20261103T030000Z-cccc", NEW, OLD]
    assert offered("opsctl show latest:sa") == ["latest:saasdb"]
    assert offered("opsctl doctor --format=ju") == ["--format=junit"]
    assert offered("opsctl prune --plan=ops") == ["--plan=opsctl.toml"]
    assert offered("opsctl prune --plan ops") == ["opsctl.toml"]


def test_scripts_are_printed_as_they_are_installed(run_opsctl):
    for shell_name, path in SCRIPTS.items():
        assert run_opsctl("completion", shell_name).stdout == Path(path).read_text()
