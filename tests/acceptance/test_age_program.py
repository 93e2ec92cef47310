"""The program age and opsctl understand each other, both ways: no backup and no key depends on which one made it."""

import hashlib
import json
import os
import re
import subprocess
import textwrap
from dataclasses import replace

import pytest

from opsctl.encryption import decrypted, encrypted, parse_identities, parse_recipients

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, timeout=120, **options).stdout


@pytest.fixture(params=["ssh-keygen", "opsctl"])
def key(request, run_opsctl, need):
    """A key pair of SSH, or of opsctl, which age reads: the public line, and the file with the secret."""
    path = run_opsctl.work / "KEY"
    if request.param == "ssh-keygen":
        run(need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", path)
        return path.with_name("KEY.pub").read_text().strip(), path
    public = run_opsctl("keygen", "-o", path).stdout.strip()
    assert run(need("age-keygen"), "-y", path, text=True).strip() == public
    return public, path


@pytest.fixture
def shell(run_opsctl, rich, binaries, need):
    """The shell of somebody without opsctl: age, zstd and PostgreSQL's programs, and the server by its variables."""
    need("zstd")
    environment = {
        "PATH": os.pathsep.join([str(binaries.folder), str(need("age").parent), os.environ["PATH"]]),
        "PGHOST": str(rich.cluster.socket_folder),
        "PGPORT": str(rich.cluster.port),
        "PGUSER": rich.cluster.user,
    }

    def call(script, folder):
        return run("bash", "-euo", "pipefail", "-c", script, cwd=folder, env=environment, text=True)

    return call


def test_a_backup_is_restored_by_hand_as_the_texts_say(run_opsctl, rich, key, shell, only_backup, facts_of):
    """RESTORE.txt's lines for an encrypted backup, and the manifest's own: each brings every row back."""
    public, path = key
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{rich.name}"]\nurl = "{rich.url}"\n[encryption]\nrecipients = {json.dumps([public])}\n'
    )
    assert run_opsctl("backup").returncode == 0
    backup = only_backup(run_opsctl.work / "backups")
    recipe = (run_opsctl.work / "backups/RESTORE.txt").read_text().partition("whose files end in .age")[2]
    lines = textwrap.dedent("".join(re.findall(r"^    .*\n", recipe, re.MULTILINE)))
    by_text, by_manifest = (replace(rich, name=f"{rich.name}_{how}") for how in ("text", "manifest"))
    named = lines.replace("restored", by_text.name).replace("KEY", str(path)).replace("| less", "")
    said = shell(named, backup.folder)

    assert hashlib.sha256((backup.folder / "dump.zst.age").read_bytes()).hexdigest() in said
    assert "CREATE ROLE" in said
    rich.execute(f'CREATE DATABASE "{by_manifest.name}" TEMPLATE template0')
    command = backup.manifest["restore_command"]
    shell(command.replace("KEY", str(path)).replace("DATABASE", by_manifest.name), backup.folder)
    for restored in (by_text, by_manifest):
        assert facts_of(restored).tables == facts_of(rich).tables


def test_what_age_encrypted_is_read(need, key):
    """A file of age's, to several recipients, opens with the identity that opens ours."""
    public, path = key
    other = run(need("age-keygen"), text=True)
    recipients = [public, re.search(r"age1\w+", other)[0]]
    data = os.urandom(3 << 20)
    raw = run(need("age"), *(word for each in recipients for word in ("-r", each)), input=data)

    identities = [parse_identities(text, where="here") for text in (path.read_text(), other)]
    assert [b"".join(decrypted([raw[:70000], raw[70000:]], each)) == data for each in identities] == [True, True]
    ours = b"".join(encrypted([data[:5], data[5:]], parse_recipients(recipients, where="here")))
    assert run(need("age"), "--decrypt", "--identity", path, input=ours) == data
