"""A folder that stops being writable: nothing is listed that does not restore, nothing stays, and it is said."""

import ctypes
import os
import shlex
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from servers import throwaway_server

from opsctl.catalog import ORPHAN_GRACE
from opsctl.prune import execute, plan
from opsctl.repository import Repository
from opsctl.retention import Policy
from opsctl.storage.local import LocalStorage

pytestmark = pytest.mark.end_to_end
PR_CAPBSET_DROP = 24
OVERRIDES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: without them root is held to the modes of files like anybody."""


def bound_by_modes():
    """In the child, before it becomes the program."""
    if os.geteuid() == 0:
        for capability in OVERRIDES:
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def assert_sound(run_opsctl, root, url, count):
    """So many backups are listed and decode; after the next prune, past the grace, nothing else is there."""
    listed = run_opsctl("list", "--json", url=url).json["result"]["backups"]
    assert len(listed) == count
    if count:
        assert run_opsctl("verify", "--all", url=url).returncode == 0
    repository = Repository("local", LocalStorage(root))
    later = datetime.now(UTC) + ORPHAN_GRACE + timedelta(minutes=1)
    execute(plan({"local": repository.catalog()}, {"local": Policy()}, now=later), [repository])
    left = {path.name for path in root.glob("*/*")} | {path.name for path in root.glob("*/.*")}
    assert left == {each["id"] for each in listed}


@pytest.fixture
def url(binaries):
    """A server on 127.0.0.1: whoever is held to modes may not enter the folder of the others' socket."""
    with throwaway_server(binaries, listen=True) as running:
        yield running.tcp_url()


def test_a_folder_one_may_not_write_to(run_opsctl, url):
    """EACCES: named with the folder, exit code 13; what is there can be read all the same."""
    assert run_opsctl("backup", url=url).returncode == 0
    root = run_opsctl.work / "backups"
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    process = run_opsctl.start("backup", "--json", url=url, preexec_fn=bound_by_modes)
    stdout, _ = process.communicate(timeout=60)
    for folder in folders:
        folder.chmod(0o700)

    assert process.returncode == 13, stdout
    assert "Permission denied" in stdout
    assert str(root) in stdout
    assert_sound(run_opsctl, root, url, 1)


def test_a_disk_that_turns_read_only_in_the_middle(run_opsctl, saas, binaries, tmp_path):
    """As after an I/O error: exit code 13 with its name; what could not be cleaned up is no backup, and is pruned."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    root, view, programs = tmp_path / "disk", tmp_path / "view", tmp_path / "bin"
    for folder in (root, view, programs):
        folder.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "--bind", root, view], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not let root mount: {mounted.stderr.strip()}")
    try:
        text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.local]\nurl = "{view}"\n'
        (run_opsctl.work / "opsctl.toml").write_text(text)
        assert run_opsctl("backup").returncode == 0
        turn = f"mount -o remount,bind,ro {shlex.quote(str(view))}"
        for name in ("pg_dump", "pg_dumpall", "pg_restore"):
            real = shlex.quote(str(binaries.path(name)))
            first = f'[ "$1" = --version ] || {turn}\n' if name == "pg_dump" else ""
            (programs / name).write_text(f'#!/bin/sh\n{first}exec {real} "$@"\n')
            (programs / name).chmod(0o755)
        failed = run_opsctl("backup", "--json", env={"PATH": f"{programs}:{os.environ['PATH']}"})
        assert failed.returncode == 13, failed
        assert "Read-only file system" in failed.json["error"]["message"]
        subprocess.run(["mount", "-o", "remount,bind,rw", view], check=True)
        assert [each["reason"] for each in run_opsctl("list", "--json").json["result"]["incomplete"]] == ["interrupted"]
        assert_sound(run_opsctl, view, None, 1)
        assert run_opsctl("backup").returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", view], check=True)


def test_a_dump_that_the_disk_does_not_give_back(run_opsctl, saas):
    """EIO in the middle of reading: exit code 13, named; a verification says nothing about the backup then."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    (dump,) = (run_opsctl.work / "backups").glob("*/*/dump.zst")
    dump.unlink()
    dump.symlink_to("/proc/self/mem")  # whoever reads its beginning gets EIO
    restored = run_opsctl("restore", "latest", "--into", f"{saas.name}_copy", "--json", url=saas.url)
    verified = run_opsctl("verify", "--json", url=saas.url)

    assert (restored.returncode, restored.json["error"]["code"]) == (13, "repository_unreachable"), restored
    assert "dump.zst cannot be read to its end: Input/output error" in restored.json["error"]["message"]
    assert [each["outcome"] for each in verified.json["result"]["backups"]] == ["unknown"], verified
