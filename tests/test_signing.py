"""Signed manifests: what was not written by a trusted key is neither restored nor exported."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from opsctl.errors import BackupDamaged, ConfigurationError
from opsctl.keys import Keys
from opsctl.manifest import parse_manifest
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.restore import Restore
from opsctl.restore_plan import RestoreOptions
from opsctl.signing import new_signing_key, parse_public_keys, parse_signing_key, signature_problem
from opsctl.storage.local import LocalStorage

OURS, OUR_KEY = new_signing_key()
OTHERS, OTHERS_KEY = new_signing_key()


def configure(run_opsctl, database, signing):
    text = f'[databases."{database.name}"]\nurl = "{database.url}"\n[signing]\n{signing}\n'
    (run_opsctl.work / "opsctl.toml").write_text(text)


def back_up_signed(run_opsctl, database, only_backup):
    (run_opsctl.work / "key").write_text(OUR_KEY)
    configure(run_opsctl, database, f'key_file = "key"\npublic_keys = ["{OURS} backup@host"]')
    run = run_opsctl("backup", "--json")
    assert run.returncode == 0, run
    return only_backup(run_opsctl.work / "backups")


@pytest.fixture
def signed(run_opsctl, rich, only_backup):
    """A signed backup, and a configuration that trusts its key."""
    return back_up_signed(run_opsctl, rich, only_backup)


# What is covered


def test_every_field_is_covered_and_unknown_ones_too(signed):
    """Any change, removal or addition outside the signature is found; another order or spacing of the JSON is none."""
    document = signed.manifest
    assert document["signature"]["public_key"] == OURS
    assert signature_problem(json.dumps(document).encode(), [OURS]) is None
    reordered = dict(sorted(document.items(), reverse=True))
    assert signature_problem(json.dumps(reordered, indent=7, ensure_ascii=False).encode(), [OTHERS, OURS]) is None

    changed = [{**document, key: "changed"} for key in document if key != "signature"]
    changed += [{key: value for key, value in document.items() if key != gone} for gone in document]
    changed += [{**document, "of_a_newer_version": None}, {**document, "signature": None}, {**document, "signature": 7}]
    changed += [
        {**document, "signature": {**document["signature"], "value": value}} for value in ("", "AAAA", "?", None)
    ]
    for each in changed:
        assert signature_problem(json.dumps(each).encode(), [OURS]) is not None
    assert "not have" in str(signature_problem(json.dumps(document).encode(), [OTHERS]))
    assert signature_problem(b"{", [OURS]) == "its manifest cannot be read"


def test_a_signature_is_not_another_keys(signed):
    """Whoever signs with a key of their own and writes down ours, or theirs, is not believed."""
    manifest = parse_manifest(json.dumps(signed.manifest).encode(), where="here")
    theirs = parse_signing_key(OTHERS_KEY, where="here").signed(replace(manifest, host="elsewhere", signature=None))
    document = json.loads(theirs.to_json())

    assert "signed by" in str(signature_problem(json.dumps(document).encode(), [OURS]))
    document["signature"]["public_key"] = OURS
    assert "was changed after" in str(signature_problem(json.dumps(document).encode(), [OURS]))


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", OURS, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"],
    ids=["empty", "text", "public", "cut"],
)
def test_a_key_that_is_none(text):
    """A file that holds no private key, and a line that is no public one, are errors of the configuration."""
    with pytest.raises(ConfigurationError, match="no private key"):
        parse_signing_key(text, where="here")
    with pytest.raises(ConfigurationError, match=r"here: (holds a private key|.*no ed25519 public key)"):
        parse_public_keys([text if text != OURS else OUR_KEY], where="here")


# The program


@pytest.mark.end_to_end
def test_a_signed_backup_is_one_like_any_other(run_opsctl, signed, rich, facts_of):
    """Backup, verification, restore and export work as ever; ``show`` says who signed it."""
    tables = facts_of(rich).tables
    assert run_opsctl("verify", "--json").json["result"]["backups"][0]["evidence"] == "decoded"
    assert OURS in run_opsctl("show", "latest").stdout
    assert run_opsctl("export", "latest", "-o", "out.dump").returncode == 0
    rich.execute("DROP SCHEMA billing CASCADE")
    assert run_opsctl("restore", "latest", "--yes", rich.name).returncode == 0
    assert [(each.name, each.rows) for each in facts_of(rich).tables] == [(each.name, each.rows) for each in tables]
    assert list((run_opsctl.state / "spool").iterdir()) == []


@pytest.mark.end_to_end
@pytest.mark.parametrize("how", ["unsigned", "changed", "untrusted"])
def test_what_nobody_trusted_wrote_is_refused(run_opsctl, signed, rich, databases_like, how):
    """Restore, export and globals refuse (16) and change nothing; verify fails (15) and leaves no evidence behind."""
    if how == "unsigned":
        signed.rewrite(signature=None)
    elif how == "changed":
        signed.rewrite(host="elsewhere")
    else:
        configure(run_opsctl, rich, f'public_keys = ["{OTHERS}"]')
    all_ways = [
        ["restore", "latest", "--yes", rich.name],
        ["restore", "latest", "--plan"],
        ["restore", "latest", "--globals", "--plan"],
        ["export", "latest", "-o", "out.dump"],
    ]
    for arguments in all_ways if how == "unsigned" else all_ways[:1]:
        run = run_opsctl(*arguments, "--json")
        assert run.returncode == 16, run
        assert "cannot be trusted" in run.json["error"]["message"]
    verified = run_opsctl("verify", "--json")
    (result,) = verified.json["result"]["backups"]
    assert (verified.returncode, result["outcome"], result["evidence"]) == (15, "fail", None)
    assert "cannot be trusted" in result["problems"][0]
    assert signed.evidence == []
    assert databases_like(rich) == [rich.name]
    assert not (run_opsctl.work / "out.dump").exists()


@pytest.mark.end_to_end
def test_a_forged_copy_does_not_hide_the_true_one(run_opsctl, signed, rich):
    """Whoever rewrites one repository stops no restore: another copy is taken, and verify names the forged one."""
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "elsewhere")
    signed.rewrite(host="changed")
    repositories = '[repositories.a]\nurl = "backups"\n[repositories.b]\nurl = "elsewhere"'
    configure(run_opsctl, rich, f'public_keys = ["{OURS}"]\n{repositories}')

    planned = run_opsctl("restore", "latest", "--plan", "--json")
    assert (planned.returncode, planned.json["result"]["plan"]["blockers"]) == (0, []), planned
    verified = run_opsctl("verify", "--json")
    assert verified.returncode == 15
    (result,) = verified.json["result"]["backups"]
    assert result["repositories"] == [{"name": "a", "outcome": "fail"}, {"name": "b", "outcome": "pass"}]


@pytest.mark.end_to_end
def test_a_backup_that_could_not_be_restored_here_is_not_taken(run_opsctl, database):
    """A signing key that the same configuration does not trust is a mistake (10), found before the first backup."""
    (run_opsctl.work / "key").write_text(OUR_KEY)
    configure(run_opsctl, database, f'key_file = "key"\npublic_keys = ["{OTHERS}"]')
    run = run_opsctl("backup", "--json", "--debug")

    assert run.returncode == 10
    assert OURS in run.json["error"]["message"]
    assert not any(line in run.stdout + run.stderr for line in OUR_KEY.splitlines()[1:-1])
    assert not (run_opsctl.work / "backups").exists()


class TwoFaced(LocalStorage):
    """A storage that hands out the dump as often as it is ``honest``, and then another one."""

    def __init__(self, root, honest):
        super().__init__(root)
        self.honest = honest

    def open(self, key):
        if key.endswith("dump.zst"):
            self.honest -= 1
            if self.honest < 0:
                return super().open(f"{key}.other")
        return super().open(key)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("trusted", "honest", "loads", "fails"),
    [
        pytest.param((OURS,), 0, False, True, id="signed"),
        pytest.param((OURS,), 1, True, False, id="signed, exchanged later"),
        pytest.param((), 1, True, True, id="unsigned, exchanged later"),
    ],
)
def test_nothing_runs_of_a_dump_that_was_exchanged(
    run_opsctl, saas, only_backup, binaries, tmp_path, trusted, honest, loads, fails
):
    """With trusted keys the dump is read once, and to its end before pg_restore sees a byte of it.

    Without, one that is exchanged after it was hashed is loaded into the staging database before its digest is known:
    damage would be found all the same, but what an attacker put there has run.
    """
    signed = back_up_signed(run_opsctl, saas, only_backup)  # larger than a pipe: loading waits for the program
    log, folder = tmp_path / "called", tmp_path / "programs"
    folder.mkdir()
    script = folder / "pg_restore"
    real = binaries.path("pg_restore")
    script.write_text(f'#!/bin/sh\ncase "$*" in *--dbname*) echo loaded >> {log};; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    manifest = parse_manifest((signed.folder / "manifest.json").read_bytes(), where="here")
    signed.dump.with_name("dump.zst.other").write_bytes(signed.dump.read_bytes() + b"\0")
    restore = Restore(
        manifest=manifest,
        repository=Repository("local", TwoFaced(run_opsctl.work / "backups", honest)),
        server=Server(saas.url),
        database=f"{saas.name}_copy",
        options=RestoreOptions(into=True),
        tools=Tools(search_path=[str(folder)], environment={"PATH": "/usr/bin:/bin"}),
        state_path=tmp_path / "state",
        keys=Keys(trusted=trusted),
    )
    with pytest.raises(BackupDamaged) if fails else nullcontext():
        restore.execute(clock=lambda: datetime.now(UTC), start_progress=lambda _doing, _total: lambda _count: None)
    assert log.exists() is loads
