"""The manifest: what is written can be read, what is damaged is said to be, and names choose one backup or none."""

import json
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.errors import BackupDamaged, NoSuchBackup
from opsctl.manifest import (
    DatabaseProperties,
    ExtensionFacts,
    Facts,
    Manifest,
    SequenceFacts,
    Setting,
    StoredFile,
    TableFacts,
    backup_id,
    choose,
    parse_manifest,
)
from opsctl.times import format_time

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=63)
counts = st.none() | st.integers(0, 2**63)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)

PROPERTIES = DatabaseProperties(
    owner="owner",
    encoding="UTF8",
    locale_provider="libc",
    collate="C",
    ctype="C",
    locale=None,
    collation_version=None,
    acl=("=Tc/owner",),
    comment='it\'s "the" shop',
    connection_limit=-1,
    settings=(Setting(None, "work_mem", "4MB"), Setting("reader", "search_path", '"$user", public')),
)
MANIFEST = Manifest(
    id="shop-20261123T030000Z-0a1b",
    database="shop",
    started_at=NOW - timedelta(seconds=90),
    finished_at=NOW,
    opsctl_version="0.1.0",
    pg_dump_version="18.1",
    server_version="17.2",
    host="db1",
    files=(
        StoredFile("dump.zst", 1000, 100, "a" * 64, "b" * 64),
        StoredFile("globals.sql.zst", 10, 5, "c" * 64, "d" * 64),
    ),
    facts=Facts(
        level="content",
        tables=(TableFacts("public", "users", 7, "-1f"), TableFacts("public", "unknown")),
        sequences=(SequenceFacts("public", "users_id_seq", 7, 1),),
        extensions=(ExtensionFacts("plpgsql", "1.0", "pg_catalog"),),
        roles=("owner", "reader"),
        database=PROPERTIES,
        large_objects=2,
        large_objects_hash="ff",
    ),
    restore_command="zstd -d … | pg_restore …",
    warnings=("a warning",),
    labels={"why": "before the migration"},
)


def parsed(manifest, **changes):
    return parse_manifest(json.dumps({**json.loads(manifest.to_json()), **changes}).encode(), where="here")


# Written and read


def test_what_is_written_is_what_is_read():
    """Every field survives, times to the millisecond."""
    assert parse_manifest(MANIFEST.to_json(), where="here") == MANIFEST


@given(database=names, owner=names, table=names, rows=counts, comment=st.none() | names, at=moments)
def test_any_name_and_any_number_survives(database, owner, table, rows, comment, at):
    """Whatever a database, a table or a comment is called, it is read as it was written."""
    facts = replace(
        MANIFEST.facts,
        tables=(TableFacts(owner, table, rows),),
        database=replace(PROPERTIES, owner=owner, comment=comment),
    )
    manifest = replace(MANIFEST, database=database, facts=facts, started_at=at, finished_at=at)

    assert parse_manifest(manifest.to_json(), where="here") == manifest


def test_it_can_be_read_by_people():
    """Indented, with names as they are rather than escaped: somebody restores from it by hand one night."""
    text = replace(MANIFEST, database="Магазин").to_json().decode()

    assert '\n  "database": "Магазин"' in text
    assert '"started_at": "2026-11-23T11:58:30.000Z"' in text


def test_keys_of_a_later_minor_version_are_ignored():
    """A manifest with more keys than this opsctl knows is still readable."""
    assert parsed(MANIFEST, countersigned="…", more={"deep": [1]}) == MANIFEST


def test_old_manifests_need_not_have_the_newer_fields():
    """Fields with a default may be missing: those came later."""
    raw = json.loads(MANIFEST.to_json())
    for key in ("labels", "warnings", "system_identifier", "database_oid", "database_bytes", "encryption"):
        del raw[key]

    assert parse_manifest(json.dumps(raw).encode(), where="here").labels == {}


@pytest.mark.parametrize(
    "key", [each.name for each in fields(Manifest) if each.name in {"id", "database", "started_at", "files", "facts"}]
)
def test_a_missing_key_is_damage_and_is_named(key):
    """What a restore needs must be there; the message says where and what is missing."""
    raw = json.loads(MANIFEST.to_json())
    del raw[key]

    with pytest.raises(BackupDamaged, match=f"here.*{key}"):
        parse_manifest(json.dumps(raw).encode(), where="here")


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b"\xff\xfe\x00", b"{}", b'{"schema": 1}', MANIFEST.to_json()[:-2], b"\0" * 512],
    ids=repr,
)
def test_what_is_no_manifest_is_damage(data):
    """Whatever lies there instead of a manifest, the error is BackupDamaged with a hint."""
    with pytest.raises(BackupDamaged) as caught:
        parse_manifest(data, where="shop/x/manifest.json")

    assert "shop/x/manifest.json" in caught.value.message
    assert caught.value.hint


@given(st.integers(0, len(MANIFEST.to_json()) - 1), st.integers(1, 255))
def test_a_changed_byte_is_read_or_is_damage(position, change):
    """No byte of damage becomes another kind of error."""
    data = bytearray(MANIFEST.to_json())
    data[position] ^= change
    try:
        parse_manifest(bytes(data), where="here")
    except BackupDamaged:
        return


def test_a_newer_schema_is_not_read_halfway():
    """A schema this opsctl does not know is refused, saying that a newer opsctl wrote it."""
    with pytest.raises(BackupDamaged, match="schema 2") as caught:
        parsed(MANIFEST, schema=2)

    assert "newer opsctl" in caught.value.hint


def test_a_manifest_without_a_dump_is_damage():
    """Files are named, but none of them is a dump: nothing could be restored."""
    with pytest.raises(BackupDamaged, match="no dump"):
        parse_manifest(replace(MANIFEST, files=MANIFEST.files[1:]).to_json(), where="here")


def test_derived_values():
    """Sizes, duration and versions follow from what is recorded."""
    assert MANIFEST.dump.name == "dump.zst"
    assert MANIFEST.stored_bytes == 105
    assert MANIFEST.duration_seconds == 90
    assert MANIFEST.pg_dump_major == 18
    assert MANIFEST.created_at == MANIFEST.started_at


def test_rows_are_unknown_when_one_table_is():
    """A sum with an unknown in it is unknown; of no tables it is zero."""
    assert MANIFEST.facts.rows is None
    assert replace(MANIFEST.facts, tables=MANIFEST.facts.tables[:1]).rows == 7
    assert replace(MANIFEST.facts, tables=()).rows == 0


# Names and times


def test_times_are_written_in_utc():
    """RFC 3339 in UTC to the millisecond, from any zone."""
    moment = datetime(2026, 3, 29, 1, 30, 0, 123999, tzinfo=timezone(timedelta(hours=2)))

    assert format_time(moment) == "2026-03-28T23:30:00.123Z"


@given(st.lists(moments, min_size=2, max_size=2))
def test_ids_sort_by_time(pair):
    """Of one database, the later backup has the greater id; a second apart is enough."""
    first, second = (backup_id("shop", moment.replace(microsecond=0), "0000") for moment in sorted(pair))

    assert first <= second
    assert len(first) == len("shop-20261123T030000Z-0a1b")


# Choosing


@dataclass(frozen=True)
class Choice:
    id: str
    database: str = "shop"
    created_at: datetime = NOW


def daily(count, database="shop"):
    moments = [NOW - timedelta(days=days, hours=1) for days in range(count)]
    return [Choice(backup_id(database, moment, "0000"), database, moment) for moment in moments]


def test_latest_is_the_newest_that_is_not_in_the_future():
    """A backup dated after now never counts, however it got its date."""
    backups = daily(3)
    future = Choice("shop-20991231T000000Z-0000", created_at=NOW + timedelta(seconds=1))

    assert choose([*reversed(backups), future], "latest", now=NOW) == backups[0]


def test_latest_before_a_time():
    """The newest at or before that time; none is no such backup."""
    backups = daily(3)

    assert choose(backups, "latest", now=NOW, before=backups[1].created_at) == backups[1]
    assert choose(backups, "latest", now=NOW, before=NOW + timedelta(days=9)) == backups[0]
    with pytest.raises(NoSuchBackup, match="before 2026-11-21"):
        choose(backups, "latest", now=NOW, before=backups[2].created_at - timedelta(hours=1))


def test_latest_of_several_databases_needs_a_name():
    """``latest`` alone guesses nothing; the hint has the words that work."""
    backups = [*daily(2), *daily(2, "crm")]

    with pytest.raises(NoSuchBackup) as caught:
        choose(backups, "latest", now=NOW)
    assert caught.value.hint == "Use latest:crm, latest:shop."
    assert choose(backups, "latest:crm", now=NOW).database == "crm"
    assert choose(backups, "latest", now=NOW, databases=["shop"]).database == "shop"


def test_a_database_may_be_called_like_a_rule():
    """``latest:NAME`` takes everything after the colon as the name."""
    backup = Choice("a", database="latest:b")

    assert choose([backup], "latest:latest:b", now=NOW) == backup


@given(st.integers(1, 40))
def test_a_beginning_chooses_one_or_none(length):
    """A prefix is taken only when exactly one backup begins with it."""
    backups = daily(5)
    prefix = backups[2].id[:length]
    matching = [backup for backup in backups if backup.id.startswith(prefix)]
    if len(matching) == 1:
        assert choose(backups, prefix, now=NOW) == backups[2]
    else:
        with pytest.raises(NoSuchBackup, match=f"beginning of {len(matching)}"):
            choose(backups, prefix, now=NOW)


def test_a_whole_id_wins_over_longer_ones():
    """An id that is the beginning of another one still names itself."""
    backups = [Choice("shop-1"), Choice("shop-11")]

    assert choose(backups, "shop-1", now=NOW) == backups[0]


@pytest.mark.parametrize("wanted", ["", "SHOP", "shop-2027", "atest", "op-2026"])
def test_nothing_is_guessed(wanted):
    """Empty, another case, a middle: none of them is a beginning."""
    with pytest.raises(NoSuchBackup):
        choose(daily(1), wanted, now=NOW)


def test_no_backup_at_all():
    """An empty catalog says how to take the first one."""
    with pytest.raises(NoSuchBackup) as caught:
        choose([], "latest", now=NOW)

    assert "opsctl backup" in caught.value.hint
