"""`opsctl keygen`: a key that is never shown, never replaced, and readable by its owner alone."""

import os
import stat
import subprocess

import pytest

from opsctl.encryption import decrypted, encrypted, parse_identities, parse_recipients
from opsctl.signing import parse_signing_key

pytestmark = pytest.mark.end_to_end


def test_an_identity_goes_to_a_file_and_its_public_key_to_stdout(run_opsctl):
    """``-o``: age's own format, mode 0600 whatever the umask; stdout is the recipient, ready for the configuration."""
    old = os.umask(0)
    try:
        run = run_opsctl("keygen", "-o", "opsctl.key")
    finally:
        os.umask(old)
    path = run_opsctl.work / "opsctl.key"
    created, public, secret = path.read_text().splitlines()

    assert run.returncode == 0, run
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert created.startswith("# created: 20")
    assert public == f"# public key: {run.stdout.strip()}"
    assert secret not in run.stdout + run.stderr
    recipients = parse_recipients([run.stdout.strip()], where="here")
    assert b"".join(decrypted(encrypted([b"x"], recipients), parse_identities(path.read_text(), where="here"))) == b"x"


def test_a_key_is_never_replaced(run_opsctl):
    """A file that is there stays: it may be what opens every backup."""
    (run_opsctl.work / "key").write_text("precious")
    run = run_opsctl("keygen", "-o", "key", "--json")

    assert (run.returncode, run.json["error"]["code"]) == (16, "refused")
    assert (run_opsctl.work / "key").read_text() == "precious"
    assert run_opsctl("keygen", "-o", "no/such/folder").returncode == 1


def test_without_a_file_the_identity_is_for_a_pipe_alone(run_opsctl):
    """Like age-keygen, but never onto a terminal and never into a JSON document."""
    piped = run_opsctl("keygen")
    assert piped.returncode == 0
    assert len(parse_identities(piped.stdout, where="here").parsed) == 1
    assert "Public key: age1" in piped.stderr

    assert run_opsctl("keygen", "--json").returncode == 2
    terminal, inside = os.openpty()
    process = run_opsctl.start("keygen", stdout=inside, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    os.close(inside)
    os.close(terminal)
    assert process.returncode == 2
    assert "does not belong on a terminal" in errors


def test_a_signing_key(run_opsctl):
    """``--signing``: an ed25519 key in OpenSSH's format, and the public key for ``signing.public_keys``."""
    run = run_opsctl("keygen", "--signing", "-o", "signing.key", "--json")
    text = (run_opsctl.work / "signing.key").read_text()

    result = run.json["result"]
    assert result == {"kind": "signing", "file": "signing.key", "public_key": result["public_key"]}
    assert parse_signing_key(text, where="here").public_key == result["public_key"]
    assert text.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
