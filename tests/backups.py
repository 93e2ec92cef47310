"""Backups to look at, to damage and to restore."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from databases import Database, new_database_on
from program import Opsctl

from opsctl.postgres.cluster import Cluster


@dataclass(frozen=True)
class Stored:
    """A backup as it lies in a repository on this disk."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def dump(self) -> Path:
        return next(self.folder.glob("dump.*"), self.folder / "dump.zst")

    @property
    def manifest(self) -> Any:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def evidence(self) -> list[Path]:
        return sorted(self.folder.glob("evidence/*"))

    def rewrite(self, **changes: Any) -> None:
        """Change the manifest behind opsctl's back."""
        (self.folder / "manifest.json").write_text(json.dumps({**self.manifest, **changes}))

    def copy(self, taken_at: datetime, *, repository: Path | None = None, **changes: Any) -> "Stored":
        """The same backup, as if it had been taken at another time (and in another repository)."""
        database = self.manifest["database"]
        identifier = f"{database}-{taken_at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"
        root = repository or self.folder.parents[1]
        other = Stored(root / self.folder.parent.name / identifier)
        shutil.copytree(self.folder, other.folder, ignore=shutil.ignore_patterns("evidence", "pin"))
        at = taken_at.isoformat().replace("+00:00", "Z")
        other.rewrite(**{"id": identifier, "started_at": at, "finished_at": at, **changes})
        return other

    def replace_dump(self, plain: bytes) -> None:
        """Other bytes in place of the dump, with every digest in the manifest made to fit."""
        import zstandard

        data = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(plain)
        self.dump.write_bytes(data)
        digests = {"sha256": hashlib.sha256(data).hexdigest(), "plain_sha256": hashlib.sha256(plain).hexdigest()}
        name = self.dump.name
        dump = {"name": name, "bytes": len(plain), "stored_bytes": len(data), **digests}
        self.rewrite(files=[dump if each["name"] == name else each for each in self.manifest["files"]])

    def plain_dump(self) -> bytes:
        """What the dump decompresses to."""
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(self.dump.read_bytes())


def _only_backup(repository: Path) -> Stored:
    (manifest,) = repository.glob("*/*/manifest.json")
    return Stored(manifest.parent)


@pytest.fixture
def only_backup() -> Callable[[Path], Stored]:
    """``only_backup(folder)``: the one backup of a repository."""
    return _only_backup


@pytest.fixture(scope="session")
def _stored_template(
    cluster: Cluster,
    _rich_template: str,
    _source_variables: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A repository with one backup of a rich database that is gone by now."""
    program = Opsctl(tmp_path_factory.mktemp("stored"), _source_variables)
    program.work.mkdir()
    with new_database_on(cluster, "gone", _rich_template) as database:
        run = program("backup", "--json", url=database.url)
    assert run.returncode == 0, run
    return program.work / "backups"


@pytest.fixture
def stored(run_opsctl: Opsctl, _stored_template: Path) -> Stored:
    """One backup of everything rich_schema.sql holds, in ``./backups``; its database does not exist any more."""
    shutil.copytree(_stored_template, run_opsctl.work / "backups")
    return _only_backup(run_opsctl.work / "backups")


@pytest.fixture
def back_up(run_opsctl: Opsctl) -> Callable[..., str]:
    """``back_up(saas)``: a new backup of a database, configured under its own name; its id."""

    def take(database: Database, facts: str = "counts", jobs: int = 1) -> str:
        text = f'[databases."{database.name}"]\nurl = "{database.url}"\nfacts = "{facts}"\njobs = {jobs}\n'
        (run_opsctl.work / "opsctl.toml").write_text(text)
        run = run_opsctl("backup", "--json")
        assert run.returncode == 0, run
        return str(run.json["result"]["backups"][0]["id"])

    return take
