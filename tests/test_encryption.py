"""Encryption: only an identity opens a backup, no damage passes, and nothing plain is left where a backup is taken."""

import hashlib
import io
import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyrage  # noqa: TID253  # a test may load what it likes
import pytest
from cryptography.hazmat.primitives import serialization  # noqa: TID253
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, rsa  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.encryption import decrypted, encrypted, opens, parse_identities, parse_recipients
from opsctl.errors import BackupDamaged, ConfigurationError
from opsctl.stream import Compression, check_stored, load, store

SINGLE = Compression(level=1, threads=1)
CANARY = "canary-b1d4f5c2"


def age_pair():
    identity = pyrage.x25519.Identity.generate()
    return str(identity.to_public()), str(identity)


def ssh_pair(private):
    """A key of ssh-keygen's: the public line, and the private file without a passphrase."""
    openssh, public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return f"{private.public_key().public_bytes(openssh, public).decode()} ops@host", text.decode()


PAIRS = {
    "x25519": age_pair(),
    "ssh-ed25519": ssh_pair(ed25519.Ed25519PrivateKey.generate()),
    "ssh-rsa": ssh_pair(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
}
RECIPIENTS = parse_recipients([public for public, _ in PAIRS.values()], where="here")
IDENTITIES = {kind: parse_identities(secret, where="here") for kind, (_, secret) in PAIRS.items()}
STRANGER = parse_identities(age_pair()[1], where="here")


def ignored(_count):
    """Progress nobody looks at."""


def stored(pieces, recipients=RECIPIENTS):
    sink = io.BytesIO()
    file = store("dump.zst.age", pieces, sink, SINGLE, ignored, recipients)
    return file, sink.getvalue()


def loaded(file, raw, identities=IDENTITIES["x25519"]):
    return b"".join(load(file, io.BytesIO(raw), ignored, identities))


# The stream


@given(st.lists(st.binary(max_size=3000), max_size=8), st.sampled_from(sorted(PAIRS)))
@settings(max_examples=40)
def test_any_recipient_reads_what_was_written(pieces, kind):
    """Whatever the pieces, each identity brings their concatenation back; the digests are of the plain and stored."""
    data = b"".join(pieces)
    file, raw = stored(pieces)

    assert (file.bytes, file.plain_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (file.stored_bytes, file.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert raw.startswith(b"age-encryption.org/v1\n")
    assert loaded(file, raw, IDENTITIES[kind]) == data
    check_stored(file, io.BytesIO(raw), ignored)  # which needs no identity


def test_a_stranger_and_nobody_open_nothing():
    """Without the right identity it is a matter of configuration, never called damage."""
    file, raw = stored([b"some rows"])

    assert not opens(raw, STRANGER)
    assert all(opens(raw, each) for each in IDENTITIES.values())
    for identities, message in ((STRANGER, "No configured identity"), (None, "no identity is configured")):
        with pytest.raises(ConfigurationError, match=message):
            loaded(file, raw, identities)


FILE, RAW = stored(
    [b"%d\tsome text that repeats\n" % number for number in range(40)],
    replace(RECIPIENTS, parsed=RECIPIENTS.parsed[:1]),
)
HEADER_BYTES = RAW.index(b"\n--- ") + 48  # the header, its MAC, the payload's nonce


def refuses_although_the_digests_fit(raw):
    """Damage by somebody who could change the manifest too."""
    fitting = replace(FILE, stored_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    with pytest.raises((BackupDamaged, ConfigurationError)) as caught:
        loaded(fitting, raw)
    return caught.value


def test_every_single_byte_counts():
    """A changed byte is found by the digest; and by age itself where the digests were made to fit."""
    for position in range(len(RAW)):
        changed = bytearray(RAW)
        changed[position] ^= 1 << position % 8
        with pytest.raises(BackupDamaged, match="SHA-256"):
            check_stored(FILE, io.BytesIO(changed), ignored)
        error = refuses_although_the_digests_fit(bytes(changed))
        if position >= HEADER_BYTES:  # before that, the key may be what does not fit any more
            assert "does not decrypt" in error.message


def test_every_truncation_is_found_and_what_follows_too():
    """A file cut anywhere is found, by both; so is one with more behind it."""
    for other in [*(RAW[:length] for length in range(len(RAW))), RAW + b"\0", RAW + RAW]:
        with pytest.raises(BackupDamaged, match=f"{len(other)} bytes instead of {len(RAW)}"):
            check_stored(FILE, io.BytesIO(other), ignored)
        assert isinstance(refuses_although_the_digests_fit(other), BackupDamaged)


def test_another_backup_of_the_same_recipients_is_not_this_one():
    """It decrypts: anybody may encrypt to a public key. Only the manifest's digest tells them apart."""
    _, other = stored([b"other rows"])
    refused = refuses_although_the_digests_fit(other)

    assert "not what was dumped" in refused.message


@pytest.mark.parametrize("direction", ["out", "back"])
def test_memory_is_bounded(direction):
    """What is under way is a few pieces, however long the stream is."""
    mib, total = os.urandom(1 << 20), 48
    given, taken, most = 0, 0, 0

    def pieces(source):
        nonlocal given
        for piece in source:
            given += len(piece)
            yield piece

    plain = [mib] * total
    raw = list(encrypted(plain, RECIPIENTS))
    stream = (
        encrypted(pieces(plain), RECIPIENTS) if direction == "out" else decrypted(pieces(raw), IDENTITIES["x25519"])
    )
    digest = hashlib.sha256()
    for piece in stream:
        taken += len(piece)
        most = max(most, given - taken)
        digest.update(piece)
    assert most < 10 << 20
    if direction == "back":
        assert digest.hexdigest() == hashlib.sha256(b"".join(plain)).hexdigest()


def age_threads():
    return [thread for thread in threading.enumerate() if thread.name == "age"]


def test_an_error_of_either_end_is_its_own():
    """A disk that fails is no damage and no bug, and no thread is left waiting for the rest."""

    def failing(pieces):
        yield from pieces
        raise TimeoutError("the disk does not answer")

    class Full(io.RawIOBase):
        def write(self, data):
            raise OSError(28, "No space left on device")

    rows = [os.urandom(1 << 20)] * 3
    with pytest.raises(TimeoutError):
        list(encrypted(failing(rows), RECIPIENTS))
    with pytest.raises(TimeoutError):
        list(decrypted(failing([RAW[:200]]), IDENTITIES["x25519"]))
    with pytest.raises(OSError, match="No space"):
        store("dump.zst.age", rows, Full(), SINGLE, ignored, RECIPIENTS)
    early = encrypted(rows, RECIPIENTS)
    next(early)
    early.close()
    assert age_threads() == []


# Recipients and identities


def bech32(prefix, data):
    """The spelling of age's keys (BIP 173)."""
    bits = "".join(f"{byte:08b}" for byte in data)
    values = [int(bits[start : start + 5].ljust(5, "0"), 2) for start in range(0, len(bits), 5)]
    head = [ord(each) >> 5 for each in prefix] + [0] + [ord(each) & 31 for each in prefix]
    check = 1
    for value in [*head, *values, *[0] * 6]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term if top >> bit & 1 else 0
    values += [(check ^ 1) >> 5 * (5 - n) & 31 for n in range(6)]
    return f"{prefix}1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] for value in values)


def tagged_recipients():
    """One of a hardware key, and its post-quantum kind."""
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    x962 = serialization.Encoding.X962
    short = point.public_bytes(x962, serialization.PublicFormat.CompressedPoint)
    long = point.public_bytes(x962, serialization.PublicFormat.UncompressedPoint)
    quantum = mlkem.MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    return bech32("age1tag", short), bech32("age1tagpq", quantum + long)


def test_recipients_of_hardware_keys_and_post_quantum_ones():
    """What the library offers is taken; what does not go together is refused before anything is encrypted to it."""
    tag, quantum = tagged_recipients()
    plain = PAIRS["x25519"][0]

    assert b"-> p256tag " in b"".join(encrypted([b"x"], parse_recipients([tag, plain], where="here")))
    assert b"-> mlkem768p256tag " in b"".join(encrypted([b"x"], parse_recipients([quantum], where="here")))
    with pytest.raises(ConfigurationError, match=r"do not go together.*postquantum"):
        parse_recipients([quantum, plain], where="here")


@pytest.mark.parametrize(
    ("recipient", "reason"),
    [
        ("age1nonsense", "is no recipient: "),
        (PAIRS["x25519"][0][:-1], "is no recipient: "),
        ("ssh-ed25519 AAAA", "is no recipient: "),
        ("ecdsa-sha2-nistp256 AAAA", "no recipient that opsctl knows"),
        ("age1pq1qqqq", "is no recipient: "),
        ("somebody@example.org", "no recipient that opsctl knows"),
        ("", "no recipient that opsctl knows"),
    ],
    ids=["short", "cut", "ssh", "ecdsa", "age1pq", "name", "empty"],
)
def test_a_recipient_that_is_none_is_named(recipient, reason):
    """The line says which of several it is, and why."""
    with pytest.raises(ConfigurationError) as caught:
        parse_recipients([PAIRS["x25519"][0], recipient], where="opsctl.toml: encryption.recipients")
    assert caught.value.message.startswith(f"opsctl.toml: encryption.recipients: {recipient!r} ")
    assert reason in caught.value.message
    assert caught.value.hint


SSH_WITH_PASSPHRASE = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABCmJKtmWl
/ULlnTPZOSbBdBAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIIsMfrh2xaQ0S4RV
5Lde4nj3Aaai2m7kPS3pM+zZtPLHAAAAkGqzqmGVDBIJgg1y152fi61dWjU0J6r1G2Ar3D
RlZwUaA2r9BoYpGcCYMPU36+5NcyPtotEbWgYCdebDcIPO3afKPtx6UDV+Xcibpkh0NWYU
RBrGKnjkwBIhnaqS9RoKB4ncDoCJEUxYCXAN7We+anifavMgHZUuWibDyEAMQ5iKKCN8pM
iiRMrap+mbJzS3gA==
-----END OPENSSH PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no identity in it"),
        ("# only a comment\n", "no identity in it"),
        (PAIRS["x25519"][1][:-1], "a line of it is no identity"),
        ("AGE-SECRET-KEY-PQ-1QQQQ", "a line of it is no identity"),
        ("AGE-PLUGIN-YUBIKEY-1QQQQ", "opsctl starts no plugins"),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", "protected by a passphrase"),
        ("age-encryption.org/v1\n-> scrypt", "protected by a passphrase"),
        (SSH_WITH_PASSPHRASE, "protected by a passphrase"),
        (ssh_pair(ec.generate_private_key(ec.SECP256R1()))[1], "cannot be used"),
    ],
    ids=["empty", "comment", "cut", "age1pq", "plugin", "armored", "binary", "ssh-passphrase", "ecdsa"],
)
def test_an_identity_that_is_none_is_not_shown(text, reason):
    """The message says what is wrong with it and nothing of what is in it."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_identities(text, where="here")
    said = f"{caught.value.message} {caught.value.hint}"
    assert [line for line in text.splitlines() if len(line) > 20 and line[:5] != "-----" and line in said] == []


def test_a_secret_among_the_recipients_is_not_shown():
    """A mistake with consequences: said so, without repeating it."""
    with pytest.raises(ConfigurationError, match="holds an identity") as caught:
        parse_recipients([PAIRS["x25519"][1]], where="here")
    assert PAIRS["x25519"][1] not in f"{caught.value.message} {caught.value.hint}"


def test_several_identities_in_one_file():
    """Old and new keys side by side, age's and OpenSSH's: after a change of keys old backups open as well."""
    text = f"# old\n{age_pair()[1]}\n\n{PAIRS['ssh-ed25519'][1]}# new\n  {PAIRS['x25519'][1]}\n"
    identities = parse_identities(text, where="here")

    assert len(identities.parsed) == 3
    for kind in ("x25519", "ssh-ed25519"):
        only = parse_recipients([PAIRS[kind][0]], where="here")
        assert b"".join(decrypted(encrypted([b"rows"], only), identities)) == b"rows"


@pytest.mark.parametrize("kind", PAIRS)
def test_recipients_tell_who_opens_without_the_file(kind):
    """Every kind of identity knows its public key, whatever comment the recipient has."""
    others = [public for other, (public, _) in PAIRS.items() if other != kind]
    identities = IDENTITIES[kind]

    assert identities.open_for([*others, PAIRS[kind][0]]) is True
    assert identities.open_for([PAIRS[kind][0].partition(" ops@")[0]]) is True
    assert identities.open_for(others) is False
    assert STRANGER.open_for(RECIPIENTS.keys) is False


def test_a_key_in_an_old_form_does_not_tell():
    """PEM has no public key in the clear: only the file itself tells whether it opens it."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()

    assert parse_identities(pem, where="here").open_for(RECIPIENTS.keys) is None


# The program


def configure(run_opsctl, database, encryption="", more=""):
    """One database, one repository, and an [encryption]; whoever restores has another one than whoever backs up."""
    text = f'[databases."{database.name}"]\nurl = "{database.url}"\n[encryption]\n{encryption}\n{more}'
    (run_opsctl.work / "opsctl.toml").write_text(text)


def recipients_line():
    return f"recipients = {json.dumps([PAIRS['x25519'][0], PAIRS['ssh-ed25519'][0]])}"


@pytest.mark.end_to_end
def test_the_backup_host_needs_no_identity(run_opsctl, rich, only_backup, databases_like):
    """With recipients alone: backup, list, show and a verification worth something. What needs more says so, early."""
    configure(run_opsctl, rich, recipients_line())
    identifier = run_opsctl("backup", "--json").json["result"]["backups"][0]["id"]
    backup = only_backup(run_opsctl.work / "backups")
    manifest = backup.manifest

    names = ["dump.zst.age", "globals.sql.zst.age"]
    assert [each["name"] for each in manifest["files"]] == names
    assert sorted(path.name for path in backup.folder.iterdir()) == [*names, "manifest.json"]
    assert manifest["encryption"] == {"recipients": [PAIRS["x25519"][0], PAIRS["ssh-ed25519"][0]]}
    assert manifest["restore_command"].startswith("age --decrypt --identity KEY dump.zst.age | zstd ")

    (entry,) = run_opsctl("list", "--json").json["result"]["backups"]
    assert entry["encrypted"]
    assert "(encrypted)" in run_opsctl("list").stdout
    shown = run_opsctl("show", identifier).stdout
    assert all(PAIRS[kind][0] in shown for kind in ("x25519", "ssh-ed25519"))

    verified = run_opsctl("verify", "--json")
    (result,) = verified.json["result"]["backups"]
    assert (verified.returncode, result["outcome"], result["evidence"]) == (0, "pass", "stored")
    assert result["notes"] == ["local: encrypted, and not decoded: no identity is configured here"]
    assert [path.name.split("-")[1:] for path in backup.evidence] == [["stored", "pass.json"]]

    for arguments, code in (
        (["export", identifier, "-o", "out.dump"], 10),
        (["restore", identifier, "--plan"], 16),
        (["restore", identifier, "--yes", rich.name], 16),
        (["restore", identifier, "--into", f"{rich.name}_copy"], 16),
        (["restore", identifier, "--globals", "--plan"], 10),
    ):
        run = run_opsctl(*arguments, "--json")
        assert run.returncode == code, run
        message = run.json["error"]["message"]
        assert f"encrypted to {PAIRS['x25519'][0]}, {PAIRS['ssh-ed25519'][0]}, and no identity" in message
    assert databases_like(rich) == [rich.name]
    assert not (run_opsctl.work / "out.dump").exists()


@pytest.mark.end_to_end
@pytest.mark.parametrize("kind", ["x25519", "ssh-ed25519"])
def test_everything_comes_back_with_an_identity(run_opsctl, rich, facts_of, kind):
    """Another host, which has an identity: verify decodes, export, globals and restore work as ever."""
    configure(run_opsctl, rich, recipients_line())
    assert run_opsctl("backup").returncode == 0
    before = facts_of(rich).tables
    (run_opsctl.work / "key").write_text(PAIRS[kind][1])
    configure(run_opsctl, rich, 'identity_file = "key"')

    verified = run_opsctl("verify", "--json").json["result"]["backups"][0]
    assert (verified["outcome"], verified["evidence"], verified["notes"]) == ("pass", "decoded", [])
    assert run_opsctl("export", "latest", "-o", "out.dump").returncode == 0
    assert (run_opsctl.work / "out.dump").read_bytes().startswith(b"PGDMP")
    assert run_opsctl("restore", "latest", "--globals", "--plan").returncode == 0
    rich.execute("DROP SCHEMA billing CASCADE")
    run = run_opsctl("restore", "latest", "--yes", rich.name, "--json")
    assert (run.returncode, run.json["result"]["evidence"]) == (0, "counted"), run
    assert [(each.name, each.rows) for each in facts_of(rich).tables] == [(each.name, each.rows) for each in before]


@pytest.mark.end_to_end
def test_the_wrong_identity_is_no_damage(run_opsctl, database, only_backup):
    """Verification cannot tell (3), and records nothing; the rest refuses with the recipients, and shows no secret."""
    configure(run_opsctl, database, recipients_line())
    run_opsctl("backup")
    secret = age_pair()[1]
    configure(run_opsctl, database, 'identity_env = "THE_IDENTITY"')
    variables = {"THE_IDENTITY": secret}

    verified = run_opsctl("verify", "--json", env=variables)
    (result,) = verified.json["result"]["backups"]
    assert (verified.returncode, result["outcome"], result["evidence"]) == (3, "unknown", "stored")
    assert "no configured identity opens it" in result["problems"][0]
    assert only_backup(run_opsctl.work / "backups").evidence == []
    runs = [run_opsctl("export", "latest", "-o", "x", "--debug", env=variables)]
    assert runs[0].returncode == 10
    runs.append(run_opsctl("restore", "latest", "--plan", "--debug", env=variables))
    assert runs[1].returncode == 16
    garbled = {"THE_IDENTITY": f"{secret}X"}
    runs.append(run_opsctl("export", "latest", "-o", "x", "--debug", env=garbled))
    assert runs[2].returncode == 10
    for run in (verified, *runs):
        assert secret not in run.stdout + run.stderr
    assert PAIRS["x25519"][0] in runs[1].stdout


@pytest.mark.end_to_end
def test_a_recipient_that_is_none_stops_the_backup(run_opsctl, database):
    """Before anything is made: no repository, no lock, exit 10."""
    configure(run_opsctl, database, 'recipients = ["age1nonsense"]')
    run = run_opsctl("backup", "--json")

    assert run.returncode == 10
    assert "opsctl.toml: encryption.recipients: 'age1nonsense'" in run.json["error"]["message"]
    assert not (run_opsctl.work / "backups").exists()


def readable_files(process, *folders):
    """The content of every file in these folders, and of every file the process has open, named or not."""
    opened = Path(f"/proc/{process.pid}/fd")
    for path in [*opened.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]:
        with suppress(OSError):
            if path.is_file():
                yield path, path.read_bytes()


@pytest.fixture
def dumping(run_opsctl, database, tmp_path):
    """``dumping()``: an encrypted backup of rows with a canary in each, once the first bytes are stored."""
    database.execute("create table planted (id serial, body text)")
    database.execute(
        "insert into planted (body) select %s || md5(n::text) || md5((n + 1)::text) from generate_series(1, 400000) n",
        CANARY,
    )
    (tmp_path / "temporary").mkdir()
    configure(run_opsctl, database, recipients_line())

    def start():
        process = run_opsctl.start("backup", "--json", env={"TMPDIR": str(tmp_path / "temporary")})
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in run_opsctl.work.rglob("*.partial/dump.zst.age")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process

    return start


@pytest.mark.end_to_end
def test_nothing_plain_touches_a_disk_of_the_backup_host(run_opsctl, dumping, tmp_path):
    """In mid-dump and afterwards: neither a row nor its zstd frame is in any file, opened without a name included."""
    folders = (run_opsctl.work, run_opsctl.state, tmp_path / "temporary")
    process = dumping()
    process.send_signal(signal.SIGSTOP)
    during = dict(readable_files(process, *folders))
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    after = dict(readable_files(process, *folders))

    assert [path for path in during if path.name == "dump.zst.age"]
    for found in (during, after):
        for path, content in found.items():
            assert CANARY.encode() not in content, path
            assert not content.startswith(b"\x28\xb5\x2f\xfd"), path
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.acceptance), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_an_encrypted_backup_like_any_other(run_opsctl, dumping, number, code):
    """It comes up as what it is, not as an error of the library, and what was begun is gone."""
    process = dumping()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)

    assert (process.returncode, json.loads(stdout)["error"]["code"]) == (code, "interrupted"), stderr
    assert list(run_opsctl.work.rglob("*.age")) == []
