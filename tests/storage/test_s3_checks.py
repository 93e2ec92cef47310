"""The checks of a repository in a bucket: what is only true of a service."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opsctl.checks import ALL_CHECKS, choose_units
from opsctl.checks.run import list_units, run_checks
from opsctl.checks.scope import Scope
from opsctl.config import load_config
from opsctl.repository import Repository


@pytest.fixture
def look(moto, tmp_path):
    """``look(bucket, …)``: the results of the checks of a repository in that bucket, by id."""

    def examine(bucket, *, skew=timedelta(0), **options):
        file = tmp_path / "opsctl.toml"
        file.write_text(f"[repositories.offsite]\n{moto.toml(bucket)}")
        storage = moto.storage(bucket, "backups", **options)
        scope = Scope(
            config=load_config(file, working_folder=Path(tmp_path)),
            databases=[],
            clock=lambda: datetime.now(UTC) + skew,
            open_server={}.__getitem__,
            open_repositories=lambda: {"offsite": Repository("offsite", storage)},
            open_tools=dict,
        )
        units = choose_units(list_units(ALL_CHECKS, scope, {}), ["repository", "backup.orphans"])
        return {each.id: each for each in run_checks(units, scope) if each.target == "offsite"}

    return examine


def test_a_bucket_in_order(look, moto):
    """It answers, it can be written, the clocks agree; it has no size. Nothing is left in it, not even a version."""
    bucket = moto.new_bucket("locked")
    found = look(bucket)

    assert {name: each.status for name, each in found.items()} == {
        "repository.reachable": "ok",
        "repository.writable": "ok",
        "repository.space": "skip",
        "repository.clock": "ok",
        "backup.orphans": "ok",
    }
    assert moto.versions(bucket) == []


@pytest.mark.parametrize(("minutes", "status"), [(2, "warn"), (-2, "warn"), (20, "crit"), (-20, "crit")])
def test_a_clock_that_is_wrong(look, moto, minutes, status):
    """In either direction; the service refuses what is 15 minutes off, and tells its time all the same."""
    found = look(moto.new_bucket(), skew=timedelta(minutes=minutes))["repository.clock"]

    assert (found.status, found.code) == (status, "clock_skew")
    assert ("ahead of" if minutes > 0 else "behind") in found.message


def test_what_another_tool_has_deleted(look, moto):
    """In a bucket that keeps versions a backup that was deleted is still there: that is worth a warning."""
    bucket = moto.new_bucket("versioned")
    storage = moto.storage(bucket, "backups")
    storage.create("shop/shop-20261124T030000Z-abcd/manifest.json", b"{}")
    moto.client().delete_object(Bucket=bucket, Key="backups/shop/shop-20261124T030000Z-abcd/manifest.json")
    found = look(bucket)["backup.orphans"]

    assert (found.status, found.code, found.value) == ("warn", "hidden", 1)


def test_no_bucket_and_no_service(look, moto):
    """One alarm for each, by the words of the service; what needs it is skipped."""
    for found in (look("no-such-bucket"), look("any", endpoint_url="http://127.0.0.1:1")):
        alarms = {name for name, each in found.items() if each.status not in {"ok", "skip"}}
        assert alarms == {"repository.reachable"}
        assert found["repository.reachable"].remedy.text
