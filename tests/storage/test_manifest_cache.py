"""The cache of manifests saves requests, and never decides anything."""

import json
import sqlite3
import zlib
from collections import Counter

import pytest

from opsctl.manifest_cache import FILE, ManifestCache
from opsctl.repository import Repository


@pytest.fixture
def requests(moto):
    """What is asked of the service, by operation."""
    seen: Counter[str] = Counter()
    events = moto.client().meta.events
    events.register("before-call.s3", lambda model, **_: seen.update([model.name]), unique_id="count")
    yield seen
    events.unregister("before-call.s3", unique_id="count")


@pytest.fixture
def filled(moto, stored):
    """A bucket with three copies of a real backup; the storage, and the keys of their manifests."""
    storage = moto.storage(moto.new_bucket(), "p")
    for number in range(3):
        identifier = f"shop-20261124T03000{number}Z-0a1b"
        stored.rewrite(id=identifier, database="shop")
        for file in ("dump.zst", "manifest.json"):
            storage.create(f"shop/{identifier}/{file}", (stored.folder / file).read_bytes())
    return storage, [f"shop/shop-20261124T03000{number}Z-0a1b/manifest.json" for number in range(3)]


def catalog(storage, tmp_path):
    """As another run would list it."""
    return Repository("offsite", storage, cache=ManifestCache(tmp_path / "state")).catalog()


def test_what_was_read_is_not_read_again(filled, tmp_path, requests):
    """The second listing asks for no manifest, and says the same; its file is its owner's alone."""
    storage, _ = filled
    first = catalog(storage, tmp_path)
    asked = requests["GetObject"]
    second = catalog(storage, tmp_path)

    assert asked == 3
    assert requests["GetObject"] == asked
    assert second == first
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600


def test_what_changed_is_read_again_and_what_is_gone_forgotten(filled, tmp_path, moto):
    """Only what the storage lists counts, under the version it lists."""
    storage, (first, second, _) = filled
    catalog(storage, tmp_path)
    storage.delete(first)
    moto.client().put_object(Bucket=storage.bucket, Key=storage.full_key(second), Body=b"{")
    found = catalog(storage, tmp_path)

    assert len(found.backups) == 1
    assert sorted(each.reason == "interrupted" for each in found.incomplete) == [False, True]
    with sqlite3.connect(tmp_path / "state" / FILE) as connection:
        kept = {key for (key,) in connection.execute("select key from manifests")}
    connection.close()
    assert first not in kept


@pytest.mark.parametrize("harm", ["garbage", "locked", "folder", "wrong content"])
def test_a_cache_that_cannot_be_used(filled, tmp_path, harm):
    """Damaged, locked, no file at all, or telling lies about another backup: the listing is what it is without one."""
    storage, keys = filled
    expected = catalog(storage, tmp_path)
    path = tmp_path / "state" / FILE
    lock = None
    if harm == "garbage":
        path.write_bytes(b"no database" * 1000)
    elif harm == "locked":
        lock = sqlite3.connect(path)
        lock.execute("begin exclusive")
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        with sqlite3.connect(path) as connection:
            other = connection.execute("select data from manifests where key = ?", [keys[1]]).fetchone()
            connection.execute("update manifests set data = ? where key = ?", [*other, keys[0]])
        connection.close()
    assert catalog(storage, tmp_path) == expected
    if lock is not None:
        lock.close()


@pytest.fixture
def run(run_opsctl, credentials, moto, saas):
    """The program with one backup of a database in a bucket, listed once: ``run("verify", code=0)``."""
    text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.offsite]\n{moto.toml(moto.new_bucket())}'
    (run_opsctl.work / "opsctl.toml").write_text(text)

    def start(*arguments, code=0):
        done = run_opsctl(*arguments, "--json", env=credentials)
        assert done.returncode == code, done
        return done.json["result"]

    start("backup")
    start("list")
    return start


@pytest.mark.end_to_end
def test_what_reads_a_backup_believes_no_cache(run, run_opsctl, saas):
    """A cache that lies about a backup's digests damns no intact backup, and stops no restore of it."""
    path = run_opsctl.state / FILE
    with sqlite3.connect(path) as connection:
        ((key, data),) = connection.execute("select key, data from manifests").fetchall()
        manifest = json.loads(zlib.decompress(data))
        for file in manifest["files"]:
            file["sha256"] = "0" * 64
        lie = zlib.compress(json.dumps(manifest).encode())
        connection.execute("update manifests set data = ? where key = ?", [lie, key])
    connection.close()
    assert run("show", "latest")["manifest"]["files"][0]["sha256"] == "0" * 64, (
        "the lie is not in use: nothing is tested"
    )

    assert [each["outcome"] for each in run("verify", "--all")["backups"]] == ["pass"]
    run("export", "latest", "-o", "dump")
    assert run("restore", "latest", "--into", f"{saas.name}_beside")["evidence"] == "counted"
