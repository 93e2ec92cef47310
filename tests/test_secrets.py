"""No secret leaves the program: not in an argument list, an environment, a stream, a log, a manifest or a file."""

import json
import os
import pty
import shlex
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import throwaway_server

from opsctl.telemetry.redact import MASK, Redactor

PASSWORD = "p@ss:w\\ord/%?#&é"
DSN_KEY = "0123canary4567"
AWS_SECRET = "aws/canary+secret=="
OTHERS = {"SENTRY_DSN": f"http://{DSN_KEY}@127.0.0.1:1/7", "AWS_SECRET_ACCESS_KEY": AWS_SECRET}


def spellings(secret):
    """A secret as it is, percent-encoded, and as JSON, repr or libpq escape it."""
    escaped = secret.replace("\\", "\\\\")
    return {secret, quote(secret, safe=""), quote(secret), escaped, json.dumps(secret)[1:-1]}


FORBIDDEN = {spelling for secret in (PASSWORD, DSN_KEY, AWS_SECRET) for spelling in spellings(secret)}


def assert_clean(text, *, where):
    for spelling in FORBIDDEN:
        assert spelling not in text, f"{spelling} in {where}"


def assert_files_clean(*folders):
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                assert_clean(path.read_bytes().decode("latin-1"), where=path)
                assert_clean(path.read_bytes().decode("utf-8", "replace"), where=path)


@pytest.fixture(scope="module")
def listening(binaries):
    """A server that asks for the canary's password."""
    from psycopg import connect
    from psycopg.sql import SQL, Literal

    with throwaway_server(binaries, listen=True) as running:
        with connect(running.url(), autocommit=True) as connection:
            connection.execute(SQL("create role canary superuser login password {}").format(Literal(PASSWORD)))
        yield running


def configured(run_opsctl, listening, source, tmp_path, password=PASSWORD):
    """The password from ``source``; the variables for the run."""
    address = f"127.0.0.1:{listening.port}/postgres"
    variables = dict(OTHERS)
    extra = ""
    if source == "url":
        variables["DATABASE_URL"] = f"postgresql://canary:{quote(password, safe='')}@{address}"
    else:
        variables["DATABASE_URL"] = f"postgresql://canary@{address}"
    if source == "PGPASSWORD":
        variables["PGPASSWORD"] = password
    if source in {"password_file", "password_command"}:
        file = tmp_path / "password"
        file.write_text(f"{password}\n", encoding="utf-8")
        value = file if source == "password_file" else f"cat {file}"
        extra = f'{source} = "{value}"\n'
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.app]\nurl_env = "DATABASE_URL"\n{extra}')
    return variables


MORE_SOURCES = [pytest.param(name, marks=pytest.mark.acceptance) for name in ("password_command", "PGPASSWORD")]
each_source = pytest.mark.parametrize("source", ["url", "password_file", *MORE_SOURCES])


@each_source
def test_nobody_sees_the_password_of_a_running_backup(run_opsctl, listening, binaries, tmp_path, source):
    """While pg_dump runs, no argument list and no child's environment holds a secret; afterwards no file does."""
    folder, marker = tmp_path / "bin", tmp_path / "dumping"
    folder.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = shlex.quote(str(binaries.path(name)))
        wait = f'[ "$1" = --version ] || {{ touch {marker}; sleep 0.4; }}\n'
        (folder / name).write_text(f'#!/bin/sh\nenv >> {tmp_path}/environments\n{wait}exec {real} "$@"\n')
        (folder / name).chmod(0o755)
    variables = configured(run_opsctl, listening, source, tmp_path)
    process = run_opsctl.start(
        "backup", "--json", "--debug", env={**variables, "PATH": f"{folder}:{os.environ['PATH']}"}
    )
    seen = 0
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for each in Path("/proc").iterdir():
            if each.name.isdecimal():
                try:
                    arguments = (each / "cmdline").read_bytes().decode("utf-8", "replace")
                except OSError:
                    continue
                assert_clean(arguments, where=f"{each}/cmdline")
                seen += str(folder) in arguments
        time.sleep(0.02)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert seen, "pg_dump was never seen: this test has tested nothing"
    assert_clean(stdout, where="stdout")
    assert_clean(stderr, where="stderr")
    environments = (tmp_path / "environments").read_text()
    assert "PATH=" in environments
    assert_clean(environments, where="a child's environment")
    for name in ("DATABASE_URL", "SENTRY_DSN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert f"{name}=" not in environments, name
    assert_files_clean(run_opsctl.work, run_opsctl.state)


def test_the_real_pg_dump_is_told_by_a_file_only_it_can_open(run_opsctl, listening, binaries, tmp_path):
    """What anybody on the host reads of a running pg_dump in /proc has no secret: its arguments, its environment."""
    from psycopg import connect

    real = binaries.path("pg_dump").resolve()
    with connect(listening.url(), autocommit=True) as connection:
        connection.execute("create table big as select n, repeat(md5(n::text), 9) from generate_series(1, 250000) n")
    try:
        variables = configured(run_opsctl, listening, "url", tmp_path)
        process = run_opsctl.start("backup", "--json", env=variables)
        seen = []
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            seen += [found for each in Path("/proc").iterdir() if (found := told(each, real))]
            time.sleep(0.01)
        _, stderr = process.communicate(timeout=30)
    finally:
        with connect(listening.url(), autocommit=True) as connection:
            connection.execute("drop table big")
    assert process.returncode == 0, stderr
    ours = [each for each in seen if "--snapshot" in each[0] and "canary" in each[0]]  # not that of a test beside this
    assert ours, "pg_dump was never seen: this test has tested nothing"
    for arguments, environment in ours:
        assert_clean(arguments + environment, where="/proc")
        assert "PGPASSWORD=" not in environment
        assert "PGPASSFILE=/proc/self/fd/" in environment


def told(process, program):
    """The arguments and the environment of a process in /proc, if it runs that program."""
    try:
        if not process.name.isdecimal() or (process / "exe").readlink() != program:
            return None
        return tuple((process / name).read_bytes().decode("utf-8", "replace") for name in ("cmdline", "environ"))
    except OSError:
        return None


@each_source
def test_no_command_says_the_password(run_opsctl, listening, tmp_path, source):
    """Whatever a command prints, logs and keeps, in any format, holds no secret."""
    variables = configured(run_opsctl, listening, source, tmp_path)
    assert run_opsctl("backup", env=variables).returncode == 0
    for command in (["list"], ["verify"], ["show", "latest"], ["restore", "latest", "--plan"]):
        run = run_opsctl(*command, "--debug", env={**variables, "OPSCTL_LOG_FORMAT": "console"})
        assert run.returncode == 0, run
        assert_clean(run.stdout + run.stderr, where=command[0])
    assert_files_clean(run_opsctl.state, run_opsctl.work)


@each_source
def test_refused_password_is_not_shown(run_opsctl, listening, tmp_path, source):
    """An error about a password is where it leaks elsewhere: here not even the debug traceback has it."""
    from psycopg import connect

    with connect(listening.url(), autocommit=True) as connection:
        connection.execute("create role other login password 'something else'")
    try:
        variables = configured(run_opsctl, listening, source, tmp_path)
        variables["DATABASE_URL"] = variables["DATABASE_URL"].replace("//canary", "//other")
        for arguments in (["--json", "--debug"], []):
            run = run_opsctl("backup", *arguments, env=variables)
            assert run.returncode == 12, run
            assert_clean(run.stdout + run.stderr, where=str(arguments))
    finally:
        with connect(listening.url(), autocommit=True) as connection:
            connection.execute("drop role other")


def secret_in_a_message(run_opsctl):
    """A failing run whose messages and tracebacks hold a secret: it is part of the repository's path."""
    (run_opsctl.work / "file").touch()
    (run_opsctl.work / "opsctl.toml").write_text(
        f"[databases.app]\nurl_env = 'DATABASE_URL'\n[repositories.odd]\nurl = 'file/{AWS_SECRET}/dir\\canary'\n"
    )
    return {**OTHERS, "PGPASSWORD": "dir\\canary"}


FORBIDDEN |= {"dir\\canary", "dir\\\\canary"}


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--debug"], ["--json", "--debug"]], ids=" ".join)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secret_in_an_error_is_masked(run_opsctl, saas, arguments, log_format):
    """A secret in a message, a hint or a traceback is masked on every stream, in every format."""
    variables = {**secret_in_a_message(run_opsctl), "OPSCTL_LOG_FORMAT": log_format}
    run = run_opsctl("backup", *arguments, url=saas.url, env=variables)
    assert run.returncode == 13, run
    assert MASK in run.stderr
    assert_clean(run.stdout, where="stdout")
    assert_clean(run.stderr, where="stderr")


@pytest.mark.parametrize("arguments", [[], ["--debug"]], ids=["plain", "debug"])
def test_secret_in_an_error_is_masked_on_a_terminal(run_opsctl, saas, arguments):
    """The same on a terminal, where lines may be broken anywhere."""
    variables = {**secret_in_a_message(run_opsctl), "COLUMNS": "300"}
    parent, child = pty.openpty()
    process = run_opsctl.start("backup", *arguments, url=saas.url, env=variables, stdout=child, stderr=child)
    os.close(child)
    shown = b""
    try:
        while data := os.read(parent, 65536):
            shown += data
    except OSError:
        pass  # how a terminal says that its other end is closed
    os.close(parent)
    assert process.wait(timeout=30) == 13
    assert MASK in shown.decode()
    assert_clean(shown.decode(), where="the terminal")


def test_unknown_credentials_in_urls_are_masked(run_opsctl):
    """A URL given where none is wanted shows no password, though opsctl was never told of it."""
    run = run_opsctl("backup", "postgresql://me:hunter2secret@db/app", "--json", url="postgresql://x@127.0.0.1:1/app")
    assert run.returncode == 10
    assert "hunter2secret" not in run.stdout + run.stderr


def test_env_file_is_as_secret_as_the_environment(run_opsctl, listening, tmp_path):
    """Secrets that come from .env are masked and kept from children like any other."""
    variables = configured(run_opsctl, listening, "url", tmp_path)
    (run_opsctl.work / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in variables.items()))
    run = run_opsctl("backup", "--json", "--debug")
    assert run.returncode == 0, run
    assert_clean(run.stdout + run.stderr, where="the streams")
    (run_opsctl.work / ".env").unlink()
    assert_files_clean(run_opsctl.work, run_opsctl.state)


# The redactor itself

secrets = st.text(min_size=8, max_size=40).filter(lambda text: text.strip("*") and MASK not in text)
alphabet = st.text(alphabet="abc {}:/'\"\n", max_size=30)


@given(secret=secrets, before=alphabet, after=alphabet)
def test_known_secret_never_survives(secret, before, after):
    """Whatever surrounds a secret, it and its usual spellings are masked."""
    redactor = Redactor([secret])
    for spelling in (secret, quote(secret, safe=""), quote(secret)):
        assert spelling not in redactor.text(f"{before}{spelling}{after}")


@given(secret=secrets)
def test_escaped_secret_never_survives(secret):
    """Nor do the spellings that repr, JSON and libpq give it in a message."""
    redactor = Redactor([secret])
    for spelling in (repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        assert spelling not in redactor.text(f"cannot open {spelling}: no such file")


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just("<secret>") | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=12,
)


@given(structure=nested, secret=secrets)
def test_nested_structures_are_masked_throughout(structure, secret):
    """Lists and mappings of any depth, keys included, hold no secret afterwards and keep their shape."""

    def planted(value):
        if value == "<secret>":
            return f"x{secret}y"
        if isinstance(value, list):
            return [planted(each) for each in value]
        if isinstance(value, dict):
            return {key: planted(each) for key, each in value.items()}
        return value

    def strings(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for each in value:
                yield from strings(each)
        elif isinstance(value, dict):
            for key, each in value.items():
                yield from strings(key)
                yield from strings(each)

    cleaned = Redactor([secret]).deep(planted(structure))
    assert not any(secret in text for text in strings(cleaned))
    json.dumps(cleaned)


def test_longer_secret_wins():
    """A secret that begins with another one is masked whole, not up to where the shorter ends."""
    assert Redactor(["canary", "canary-and-more"]).text("<canary-and-more> <canary>") == f"<{MASK}> <{MASK}>"


def test_public_name_stays_readable():
    """A database called like its password is public: masking it would hide names and no secret."""
    redactor = Redactor()
    redactor.except_for({"saasdb"})
    redactor.add(["saasdb"])
    assert redactor.text("Backed up saasdb") == "Backed up saasdb"
    assert redactor.text("postgresql://me:saasdb@host/saasdb") == f"postgresql://me:{MASK}@host/saasdb"


@pytest.mark.parametrize("secret", ["", "a", "abc"])
def test_short_secret_is_masked_in_urls_only(secret):
    """Three letters are no secret worth hiding everything for; in a URL they are still masked."""
    redactor = Redactor([secret])
    assert redactor.text("a cab and an abacus") == "a cab and an abacus"
    assert redactor.text("postgresql://me:abc@host/db") == f"postgresql://me:{MASK}@host/db"


def test_bytes_and_other_values_pass_through():
    """Bytes are read as text; numbers, times and None are what they were."""
    assert Redactor(["canary"]).deep({"a": b"a canary", "b": 7, "c": None, "d": ("canary",)}) == {
        "a": f"a {MASK}",
        "b": 7,
        "c": None,
        "d": [MASK],
    }
