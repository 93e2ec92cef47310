"""Drills in a container: what they prove, how they are shut in, and that nothing of them stays, also after kill -9."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from waiting import wait_for

from opsctl.drill import Drills
from opsctl.drill_container import InContainer
from opsctl.drill_records import DrillRecords
from opsctl.keys import Keys
from opsctl.manifest import parse_manifest
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.services.docker import Docker
from opsctl.services.docker_throwaway import LABEL, ThrowawayContainers
from opsctl.storage.local import LocalStorage

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("docker")]

IMAGE = "local/postgres:15"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_MESSAGES": "C"}


@pytest.fixture
def ours(engine):
    """The names of the containers that drills have made, whatever their state."""
    return lambda: engine("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()


@pytest.fixture
def drill(run_opsctl, engine, cluster_of, new_database):
    """``drill()``: the program, with a backup of a PostgreSQL 15 and no room for a server on this host."""
    database = new_database(cluster_of(15), "saas")
    (run_opsctl.work / "opsctl.toml").write_text(
        f"""[databases.shop]
        url = "{database.url}"
        facts = "content"
        [[databases.shop.assertions]]
        sql = "select count(*) = 30000 from t"
        [drill]
        folder = "/nowhere"
        image = "local/postgres:{{major}}"
        """
    )
    database.execute(
        """do $$ begin create role app; exception when duplicate_object then end $$;
           create table t as select n, md5(n::text) from generate_series(1, 30000) n; alter table t owner to app"""
    )
    assert run_opsctl("backup").returncode == 0

    def run(*arguments):
        return run_opsctl("drill", "--json", *arguments, env={"DOCKER_HOST": engine.host})

    run.program = run_opsctl
    return run


def only(run):
    (backup,) = run.json["result"]["backups"]
    return backup


def copy_of(only_backup, program):
    stored = only_backup(program.work / "backups")
    data = (stored.folder / "manifest.json").read_bytes()
    return Repository("local", LocalStorage(stored.folder.parents[1])), parse_manifest(data, where="")


def test_a_container_takes_what_this_host_cannot(drill, ours):
    """Everything is compared as on a server of this host, and the container and its folder are gone."""
    run = drill()

    assert run.returncode == 0, run
    assert (only(run)["outcome"], only(run)["evidence"]) == ("pass", "content")
    assert only(run)["restored_on"] == f"a container of {IMAGE}"
    assert ours() == []
    assert list((drill.program.state / "drills").iterdir()) == []


def test_an_image_that_is_not_here_is_named(drill, ours):
    """It is pulled only where that is allowed; either way the outcome is unknown and says why."""
    config = drill.program.work / "opsctl.toml"
    config.write_text(config.read_text().replace("local/postgres:{major}", "127.0.0.1:1/postgres:{major}"))
    forbidden = drill()
    config.write_text(config.read_text() + "pull = true\n")
    allowed = drill()

    assert (forbidden.returncode, allowed.returncode) == (3, 3), forbidden
    assert "127.0.0.1:1/postgres:15: the image is not here" in " ".join(only(forbidden)["problems"])
    assert "could not pull 127.0.0.1:1/postgres:15" in " ".join(only(allowed)["problems"])
    assert ours() == []


def test_the_next_drill_removes_the_container_of_a_killed_one(drill, ours, engine):
    """SIGKILL leaves a container, shut in: no network, no capability, no right to gain one.

    Doctor names it, the next drill ends it.
    """
    process = drill.program.start("drill", env={"DOCKER_HOST": engine.host})
    (name,) = wait_for(ours, "a container is made")
    process.kill()
    process.wait()
    (record,) = (drill.program.state / "drills").iterdir()
    folder = Path(json.loads(record.read_text())["folder"])
    assert (record.stem, folder.is_dir()) == (name, True)
    (check,) = drill.program("doctor", "drill.leftovers", "--json").json["result"]["checks"]
    assert (check["status"], check["details"]["leftovers"]) == ("warn", [f"container {name}"])
    host = engine.inspect(name)["HostConfig"]
    assert (host["NetworkMode"], host["CapDrop"], host["AutoRemove"]) == ("none", ["ALL"], True)
    assert "no-new-privileges" in host["SecurityOpt"]
    assert [each["Source"] for each in engine.inspect(name)["Mounts"]] == [f"{folder}/s"]
    run = drill()

    assert run.returncode == 0, run
    assert name in run.stderr
    assert ours() == []
    assert not folder.exists()
    assert list((drill.program.state / "drills").iterdir()) == []


class Nowhere:
    """A host without any program of PostgreSQL."""

    hint = "Install them."
    reads_files = True

    def find(self, _program):
        return []


def test_a_host_without_postgresql_uses_the_programs_in_the_container(drill, engine, ours, only_backup, tmp_path):
    """The dump is loaded by the image's own pg_restore."""
    containers = ThrowawayContainers(Docker({"DOCKER_HOST": engine.host}))
    place = InContainer(containers, DrillRecords(tmp_path), IMAGE, ENVIRONMENT)
    tools = Tools(search_path=[], environment=ENVIRONMENT, place=Nowhere())
    drills = Drills(lambda _: [place], tools, Keys(), lambda: datetime.now(UTC), lambda *_: lambda _: None)
    (found,) = drills.verify([copy_of(only_backup, drill.program)])

    assert (found.outcome, found.evidence, found.problems) == ("pass", "content", ())
    assert ours() == []


def test_a_container_that_hangs_is_given_up(drill, engine, ours, only_backup, tmp_path):
    """One that stands still when the load begins: unknown, with the limit named, and it is removed."""

    def pause(label, _):
        if label == "restoring":
            engine("pause", *ours())
        return lambda _: None

    containers = ThrowawayContainers(Docker({"DOCKER_HOST": engine.host}))
    place = InContainer(containers, DrillRecords(tmp_path), IMAGE, ENVIRONMENT, timeout_seconds=8)
    tools = Tools(search_path=[], environment=ENVIRONMENT)
    (found,) = Drills(lambda _: [place], tools, Keys(), lambda: datetime.now(UTC), pause).verify(
        [copy_of(only_backup, drill.program)]
    )

    assert found.outcome == "unknown"
    assert "longer than 8 seconds" in found.problems[0]
    wait_for(lambda: not ours(), "the engine has removed it")
    assert list((tmp_path / "drills").iterdir()) == []
