"""The pieces between a repository and a restore: folders, evidence, counted rows, names of databases."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.catalog import ORPHAN_GRACE, Evidence, StoredBackup
from opsctl.errors import BackupDamaged, Refused, RepositoryUnreachable
from opsctl.manifest import EVIDENCE_LEVELS, parse_manifest
from opsctl.postgres.swap import cut, previous_name, staging_name
from opsctl.repository import Repository, read_all, segment
from opsctl.storage.local import LocalStorage
from opsctl.verify import count_rows

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

database_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda name: len(name.encode()) <= 63
)


@pytest.fixture
def repository(tmp_path):
    return Repository("local", LocalStorage(tmp_path / "repository"))


@pytest.fixture
def manifest(stored):
    """The manifest of a real backup."""
    return parse_manifest((stored.folder / "manifest.json").read_bytes(), where="here")


def add(repository, manifest):
    """A backup of a few bytes under this manifest."""
    upload = repository.begin(manifest.database, manifest.id, created_at=manifest.created_at)
    for each in manifest.files:
        with upload.file(each.name) as file:
            file.write(b"x")
    upload.publish(manifest)
    return manifest


# Folders


@given(database_names)
def test_any_name_is_one_plain_segment(name):
    """A database's name becomes one visible path segment that says exactly that name."""
    folder = segment(name)

    assert unquote(folder) == name
    assert "/" not in folder
    assert not folder.startswith(".")
    assert folder.isascii()
    assert len(f".{folder}-20261123T030000Z-0a1b.partial") <= 255


@given(st.lists(database_names, min_size=2, max_size=2, unique=True))
def test_two_names_are_two_folders(pair):
    """No two databases share a folder."""
    assert segment(pair[0]) != segment(pair[1])


def test_names_that_differ_in_case_alone(repository, manifest):
    """The second one is refused before anything is written: some disks do not tell them apart. The first goes on."""
    first, second = (replace(manifest, database=name, id=f"{name}-1") for name in ("Naïve shop", "naïve Shop"))
    add(repository, first)
    before = list(repository.storage.entries())
    with pytest.raises(Refused, match="'Naïve shop', and 'naïve Shop' differs from that in upper and lower case"):
        add(repository, second)

    assert list(repository.storage.entries()) == before
    add(repository, replace(first, id="Naïve shop-2"))


def test_a_backup_exists_exactly_when_its_manifest_does(repository, manifest):
    """Before it is published, and once its manifest is gone, it is interrupted; never a backup."""
    upload = repository.begin(manifest.database, manifest.id, created_at=manifest.created_at)
    with upload.file("dump.zst") as file:
        file.write(b"some")
    assert repository.catalog().backups == []
    assert [each.id for each in repository.catalog().incomplete] == [manifest.id]

    upload.publish(manifest)
    assert [each.manifest for each in repository.catalog().backups] == [manifest]
    assert repository.catalog().incomplete == []

    repository.storage.delete(f"{segment(manifest.database)}/{manifest.id}/manifest.json")
    assert repository.catalog().backups == []
    assert [each.reason for each in repository.catalog().incomplete] == ["interrupted"]


def test_a_manifest_in_a_partial_folder_is_no_backup(repository, manifest):
    """Killed between writing the manifest and the rename: it is not published, hence not there."""
    upload = repository.begin(manifest.database, manifest.id, created_at=manifest.created_at)
    with upload.file("manifest.json") as file:
        file.write(manifest.to_json())

    assert repository.catalog().backups == []
    assert [each.id for each in repository.catalog().incomplete] == [manifest.id]


def test_removed_is_gone(repository, manifest):
    """Nothing of a removed backup is left; removing it again is fine."""
    add(repository, manifest)
    repository.pin(manifest, now=manifest.created_at)
    for _ in range(2):
        repository.remove(manifest)

    assert list((repository.storage.root / segment(manifest.database)).iterdir()) == []


def test_missing_file_is_damage(repository, manifest):
    """A file the manifest names and the repository has not: damaged, naming file and repository."""
    add(repository, manifest)
    repository.storage.delete(f"{segment(manifest.database)}/{manifest.id}/dump.zst")

    with pytest.raises(BackupDamaged, match=r"dump\.zst is missing in the repository local"):
        repository.open(manifest, manifest.dump)


def test_catalog_of_some_databases(repository, manifest):
    """Only the folders of those databases are read; one that begins alike is another one."""
    wanted = add(repository, replace(manifest, database="a b", id="a%20b-1"))
    add(repository, replace(manifest, database="a b c", id="a%20b%20c-1"))

    assert [each.id for each in repository.catalog(["a b"]).backups] == [wanted.id]
    assert len(repository.catalog().backups) == 2


def test_foreign_files_do_not_disturb(repository, manifest):
    """What others put there is no backup and no reason to fail."""
    add(repository, manifest)
    (repository.storage.root / "lost+found").mkdir()
    (repository.storage.root / "notes.txt").write_text("x")
    (repository.storage.root / segment(manifest.database) / ".DS_Store").write_text("x")

    catalog = repository.catalog()
    assert [each.id for each in catalog.backups] == [manifest.id]
    assert catalog.incomplete == []


# Several repositories


def test_copies_are_merged_newest_first(tmp_path, manifest):
    """One entry per backup, with its copies in the order of the repositories."""
    first, second = (Repository(name, LocalStorage(tmp_path / name)) for name in ("first", "second"))
    older = replace(manifest, id="older", started_at=manifest.started_at - timedelta(days=1))
    add(first, manifest)
    add(second, manifest)
    add(second, older)
    catalog = read_all([first, second])

    assert [(each.id, each.repositories) for each in catalog.backups] == [
        (manifest.id, ["first", "second"]),
        ("older", ["second"]),
    ]


def test_one_repository_that_does_not_answer(tmp_path, manifest):
    """The others are read all the same; when none is left, its error is raised."""
    (tmp_path / "file").write_text("")
    broken = Repository("broken", LocalStorage(tmp_path / "file"))
    good = Repository("good", LocalStorage(tmp_path / "good"))
    add(good, manifest)

    catalog = read_all([broken, good])
    assert list(catalog.unreachable) == ["broken"]
    assert [each.id for each in catalog.backups] == [manifest.id]
    with pytest.raises(RepositoryUnreachable):
        read_all([broken])
    assert read_all([]).backups == []


# Evidence


def test_evidence_is_recorded_beside_the_backup(repository, manifest):
    """Level, outcome and time are in the name, details inside; it is read back from the name alone."""
    add(repository, manifest)
    repository.record_evidence(manifest, "counted", "pass", at=NOW, details={"rows": 7})
    ((path,), (backup,)) = (
        list(repository.storage.root.glob("*/*/evidence/*")),
        repository.catalog().backups[0].copies,
    )

    assert path.name.startswith("20261123T120000")
    assert path.name.endswith("-counted-pass.json")
    assert json.loads(path.read_text())["details"] == {"rows": 7}
    path.write_text("unreadable")
    assert backup.proven == Evidence("counted", passed=True, at=NOW)
    assert repository.catalog().backups[0].proven == backup.proven


@pytest.mark.parametrize("name", ["note.txt", "20261123T120000000000Z-sure-pass.json", "today-decoded-pass.json", "--"])
def test_other_files_prove_nothing(repository, manifest, name):
    """Only names of the documented form count."""
    add(repository, manifest)
    (folder := next(repository.storage.root.glob("*/*")) / "evidence").mkdir()
    (folder / name).write_text("")

    assert repository.catalog().backups[0].copies[0].evidence == ()


def with_evidence(manifest, *history):
    """``"decoded+"`` is a pass, ``"decoded-"`` a failure, an hour after the one before."""
    evidence = [
        Evidence(each[:-1], passed=each.endswith("+"), at=NOW + timedelta(hours=hours))
        for hours, each in enumerate(history)
    ]
    return StoredBackup("local", manifest, pinned=False, evidence=tuple(reversed(evidence)))


@pytest.mark.parametrize(
    ("history", "proven", "failed"),
    [
        ((), None, False),
        (("stored+",), "stored", False),
        (("content+", "decoded+"), "content", False),
        (("content+", "stored-"), None, True),
        (("stored-",), None, True),
        (("decoded-", "stored+"), None, True),
        (("decoded-", "decoded+"), "decoded", False),
        (("stored-", "counted+"), "counted", False),
        (("decoded-", "restored+", "stored-"), None, True),
        (("stored-", "decoded+", "stored+"), "decoded", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_evidence_adds_up_to(manifest, history, proven, failed):
    """The strongest pass counts, unless something failed since that nothing as thorough has disproved."""
    backup = with_evidence(manifest, *history)

    assert (backup.proven.level if backup.proven else None, backup.failed) == (proven, failed)


@given(st.lists(st.sampled_from([f"{level}{sign}" for level in EVIDENCE_LEVELS for sign in "+-"]), max_size=6))
def test_nothing_is_proven_and_failed_at_once(history):
    """A backup that counts as failed proves nothing, whatever happened before."""
    backup = with_evidence(None, *history)

    assert not (backup.failed and backup.proven)
    assert bool(backup.proven or backup.failed) == bool(history)


def test_only_what_stood_still_is_an_orphan(repository, manifest):
    """Interrupted and untouched for the grace time; a damaged manifest never makes an orphan."""
    upload = repository.begin(manifest.database, manifest.id, created_at=manifest.created_at)
    del upload
    (waiting,) = repository.catalog().incomplete
    assert not waiting.is_orphan(datetime.now(UTC))
    assert waiting.is_orphan(datetime.now(UTC) + ORPHAN_GRACE + timedelta(minutes=1))

    add(repository, replace(manifest, id="damaged"))
    (repository.storage.root / segment(manifest.database) / "damaged" / "manifest.json").write_text("{")
    damaged = next(each for each in repository.catalog().incomplete if each.id == "damaged")
    assert not damaged.is_orphan(datetime.now(UTC) + timedelta(days=9999))


# Rows counted in what pg_restore writes


SQL = r"""--
-- PostgreSQL database dump
--

SET statement_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);
-- COPY public.fake (a) FROM stdin; in a comment
COPY public.users (id, name) FROM stdin;
1	one
2	\\.
3	COPY public.fake (a) FROM stdin;
\.


COPY "We ""ird"."a.b (c)" ("x) FROM stdin;", "y") FROM stdin;
\N	\N
\.

COPY public.empty (id) FROM stdin;
\.

COPY public.no_columns  FROM stdin;


\.

SELECT pg_catalog.lowrite(0, '\x0a5c2e0a');
COPY "схема"."таблица" (id) FROM stdin;
1
\.

COPY public.users_2 (id) FROM stdin;
1
2
\.
""".encode()
COUNTED = {
    ("public", "users"): 3,
    ('We "ird', "a.b (c)"): 1,
    ("public", "empty"): 0,
    ("public", "no_columns"): 2,
    ("схема", "таблица"): 1,
    ("public", "users_2"): 2,
}


def test_rows_are_counted_wherever_the_pieces_end():
    """Cut at any byte, into two, or into single bytes: the same counts."""
    assert count_rows([SQL]) == COUNTED
    for position in range(len(SQL)):
        assert count_rows([SQL[:position], SQL[position:]]) == COUNTED, position
    for size in (1, 2, 3, 5, 7, 11):
        assert count_rows(SQL[at : at + size] for at in range(0, len(SQL), size)) == COUNTED, size


@given(st.lists(st.integers(0, len(SQL)), max_size=20).map(sorted))
@settings(max_examples=200)
def test_rows_are_counted_in_any_pieces(cuts):
    """Any number of pieces, empty ones too."""
    bounds = [0, *cuts, len(SQL)]

    assert count_rows(SQL[start:end] for start, end in pairwise(bounds)) == COUNTED


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12).filter(lambda row: row != "\\."),
        max_size=30,
    ),
    st.integers(1, 40),
)
def test_any_rows_are_counted(rows, size):
    """What COPY writes between the first line and the last is that many rows, whatever they look like."""
    data = b"COPY public.t (a) FROM stdin;\n" + b"".join(row.encode() + b"\n" for row in rows) + b"\\.\n"

    assert count_rows(data[at : at + size] for at in range(0, len(data), size)) == {("public", "t"): len(rows)}


def test_no_data_is_no_table():
    """Without a COPY line nothing was counted."""
    assert count_rows([]) == {}
    assert count_rows([b"SELECT 1;\n" * 100_000]) == {}


def test_long_header():
    """A table of 1,600 columns with names as long as they can be is found, in small pieces."""
    columns = b", ".join(b'"%063d"' % number for number in range(1600))
    data = b"COPY public.wide (" + columns + b") FROM stdin;\n" + b"x\n" * 3 + b"\\.\n"

    assert count_rows(data[at : at + 4096] for at in range(0, len(data), 4096)) == {("public", "wide"): 3}


# Names of databases


@given(database_names, st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_derived_names_fit_and_belong_to_their_database(name, moment):
    """Never more than 63 bytes, never cut inside a character, never the database's own name."""
    for derived in (staging_name(name, "0123abcd"), previous_name(name, moment)):
        assert len(derived.encode()) <= 63
        assert derived != name
        assert derived.startswith(cut(name))


@given(database_names)
def test_short_names_stay_as_they_are(name):
    """A name is shortened only when it has to be."""
    assert (cut(name) == name) == (len(name.encode()) <= 63 - len("__before_20260101T000000Z"))


def test_long_names_that_begin_alike_stay_apart():
    """What is cut off is kept as a part of its hash."""
    names = [f"{'n' * 60}{number:03}" for number in range(100)]

    assert len({cut(name) for name in names}) == 100


@given(st.integers(0, 5))
def test_the_last_one_put_aside_is_the_newest(times):
    """However quickly they follow, and whatever the clock does: each name is later than all before it."""
    taken = []
    for step in range(times + 2):
        name = previous_name("shop", NOW - timedelta(hours=step % 2), taken)
        assert name > max(taken, default="")
        taken.append(name)
