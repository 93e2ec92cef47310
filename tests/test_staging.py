"""The place for large temporary files: private, roomy enough, and empty again whatever happens."""

import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from opsctl.errors import ConfigurationError, Refused
from opsctl.staging import Staging

TEXT = {"doing": "a dump", "hint": "a larger disk"}


def test_a_folder_is_private_and_goes(tmp_path):
    """Nobody else looks into it; it and all in it are gone at the end, after an error too."""
    staging = Staging(tmp_path / "a" / "b")
    with suppress(KeyError), staging.folder(1, **TEXT) as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert staging.path.stat().st_mode & 0o777 == 0o700
        (folder.path / "sub").mkdir()
        (folder.path / "sub" / "file").write_bytes(b"x")
        raise KeyError
    with staging.file(1, **TEXT) as file:
        file.write(b"x")
        assert list(staging.path.iterdir()) == []
    assert list(staging.path.iterdir()) == []


def test_too_little_disk_is_refused_before_anything_is_made(tmp_path):
    """What is needed, what is there, where, and what to do."""
    with (
        pytest.raises(Refused, match=rf"of free disk in {tmp_path}, and a dump needs about \d+ TiB") as caught,
        Staging(tmp_path).folder(9 * 10**18, **TEXT),
    ):
        pass
    assert caught.value.hint == "a larger disk"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"), Staging(tmp_path / "file").folder(1, **TEXT):
        pass


def test_leftovers_of_the_killed_go_and_nobody_elses(tmp_path):
    """A folder is held by its run, and by every program that inherited it; when all are gone, so is the next run."""
    staging = Staging(tmp_path)
    script = (
        "import os, subprocess, sys; from pathlib import Path; from opsctl.staging import Staging\n"
        "null = subprocess.DEVNULL\n"
        "with Staging(Path(sys.argv[1])).folder(1, doing='', hint='') as folder:\n"
        "    (folder.path / 'dump').write_bytes(b'x')\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=(folder.lock,), stdout=null, stderr=null)\n"
        "    print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], check=False, capture_output=True)
    assert killed.returncode == -9, killed
    (tmp_path / "a file of somebody's").write_text("")
    (tmp_path / "opsctl-staging-link").symlink_to(tmp_path)
    (left,) = [path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]
    with staging.folder(1, **TEXT) as mine:
        assert staging.remove_leftovers() == []  # sleep holds the other one
        os.kill(int(killed.stdout), 9)
        deadline = time.monotonic() + 20
        while staging.remove_leftovers() != [left.name]:
            assert time.monotonic() < deadline
        assert mine.path.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file of somebody's", "opsctl-staging-link"]
