"""`opsctl` and a person at a terminal: what is shown, what is asked, and what counts as an answer."""

import os
import pty
import re
import select
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pytest

pytestmark = pytest.mark.end_to_end


class Terminal:
    """A run whose stdin and stderr are a terminal."""

    def __init__(self, run_opsctl, arguments, url):
        self._master, slave = pty.openpty()
        try:
            self.process = run_opsctl.start(*arguments, url=url, stdin=slave, stderr=slave)
        finally:
            os.close(slave)
        self.shown = ""

    def wait_for(self, text, seconds=120):
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear: {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                assert self._read(), f"it ended before {text!r}: {self.shown!r}"

    def type(self, line):
        os.write(self._master, line.encode() + b"\n")

    def finish(self, seconds=60):
        """The rest of what is shown, and the exit code."""
        deadline = time.monotonic() + seconds
        while select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0] and self._read():
            pass
        self.stdout = self.process.stdout.read()
        return self.process.wait(timeout=max(1, deadline - time.monotonic()))

    def close(self):
        os.close(self._master)

    def _read(self):
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode("utf-8", "replace")).replace("\r\n", "\n")
        return bool(data)


@contextmanager
def at_terminal(run_opsctl, *arguments, url=None):
    terminal = Terminal(run_opsctl, arguments, url)
    try:
        yield terminal
    finally:
        terminal.close()


def test_person_is_asked_for_the_name(run_opsctl, back_up, database):
    """At a terminal the plan is shown and the database's name has to be typed; then it happens."""
    identifier = back_up(database)
    with at_terminal(run_opsctl, "restore", "latest") as terminal:
        terminal.wait_for(f"Type {database.name} to go on")
        assert identifier in terminal.shown
        terminal.type(database.name)
        assert terminal.finish() == 0, terminal.shown
    assert f"Restored {identifier} as {database.name}" in terminal.stdout


@pytest.mark.parametrize("answer", ["yes", ""])
def test_anything_else_changes_nothing(run_opsctl, back_up, database, databases_like, answer):
    """Only the exact name goes on: everything else is 16, said as an error with a hint, no traceback."""
    back_up(database)
    with at_terminal(run_opsctl, "restore", "latest") as terminal:
        terminal.wait_for("to go on")
        terminal.type(answer)
        assert terminal.finish() == 16
    assert "Error: Not confirmed; nothing was changed." in terminal.shown
    assert "Hint:" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert databases_like(database) == [database.name]


def test_without_a_name_a_person_chooses_from_a_list(run_opsctl, back_up, database, only_backup):
    """``opsctl restore`` alone lists what there is, newest first, takes a number, and still asks for the name."""
    newest = back_up(database)
    older = only_backup(run_opsctl.work / "backups").copy(datetime(2026, 5, 1, 12, tzinfo=UTC))
    with at_terminal(run_opsctl, "restore") as terminal:
        terminal.wait_for("Which one? [1-2]")
        assert terminal.shown.index(newest) < terminal.shown.index(older.id)
        terminal.type("2")
        terminal.wait_for("to go on")
        terminal.type(database.name)
        assert terminal.finish() == 0, terminal.shown
    assert f"Restored {older.id}" in terminal.stdout


@pytest.mark.parametrize("answer", ["0", "2", "one", ""])
def test_number_that_is_not_in_the_list(run_opsctl, stored, answer):
    """A wrong number chooses nothing."""
    with at_terminal(run_opsctl, "restore") as terminal:
        terminal.wait_for("Which one? [1-1]")
        terminal.type(answer)
        assert terminal.finish() == 16


def test_without_a_name_and_without_a_terminal(run_opsctl, stored):
    """Nobody is there to choose: a usage error, at once."""
    run = run_opsctl("restore", "--json")

    assert run.returncode == 2
    assert "latest" in run.json["error"]["hint"]


def test_json_never_asks(run_opsctl, back_up, database):
    """With ``--json`` a program is there, whatever stdin is: no prompt, 16."""
    back_up(database)
    with at_terminal(run_opsctl, "restore", "latest", "--json") as terminal:
        assert terminal.finish() == 16
    assert "Type" not in terminal.shown


def test_what_is_to_be_copied_has_no_breaks_of_a_narrow_terminal(run_opsctl):
    """A line of a crontab is one line, and a unit is a unit, however wide the window is that they are copied from."""
    (run_opsctl.work / "opsctl.toml").write_text('[schedule]\nbackup = "0 3 * * *"\n')
    master, slave = pty.openpty()
    run = run_opsctl.start("cron", "show", stdout=slave, env={"COLUMNS": "40"})
    os.close(slave)
    shown = b""
    with suppress(OSError):  # the other end is closed
        while data := os.read(master, 65536):
            shown += data
    run.communicate(timeout=60)
    os.close(master)

    [line] = [each for each in shown.decode().splitlines() if each.startswith("0 3 * * *")]
    assert line.endswith(str(run_opsctl.work / "opsctl.toml"))
