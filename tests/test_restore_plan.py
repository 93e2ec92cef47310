"""`plan_restore` by itself: what it refuses, what it only remarks, for any manifest, server and options."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.catalog import Backup, Evidence, StoredBackup
from opsctl.history import MeasuredRestore
from opsctl.manifest import (
    DatabaseProperties,
    ExtensionFacts,
    Facts,
    Imported,
    Manifest,
    OwnedObjects,
    StoredFile,
    TableFacts,
)
from opsctl.postgres.swap import cut, is_ours, previous_name, put_aside_at, staging_name
from opsctl.postgres.target import LiveDatabase, Target
from opsctl.repository import Repository
from opsctl.restore_plan import SMALL_BYTES, Obstacle, RestoreOptions, plan_restore
from opsctl.restore_time import expected_time, in_proportion
from opsctl.storage.local import LocalStorage

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PROPERTIES = DatabaseProperties(
    owner="alice",
    encoding="UTF8",
    locale_provider="libc",
    collate="de_DE.UTF-8",
    ctype="de_DE.UTF-8",
    locale=None,
    collation_version="2.36",
    acl=None,
    comment=None,
    connection_limit=-1,
    settings=(),
)
FACTS = Facts(
    level="counts",
    tables=(TableFacts("public", "a", 10), TableFacts("public", "b", None), TableFacts("s", "c", 0)),
    sequences=(),
    extensions=(ExtensionFacts("plpgsql", "1.0", "pg_catalog"),),
    roles=("alice",),
    database=PROPERTIES,
    owners=(OwnedObjects("alice", 3, ("table a", "table b", "table s.c")),),
)
MANIFEST = Manifest(
    id="shop-20261123T110000Z-0000",
    database="shop",
    started_at=NOW,
    finished_at=NOW,
    opsctl_version="1",
    pg_dump_version="16.4",
    server_version="16.4",
    host="h",
    files=(StoredFile("dump.zst", 1000, 100, "0", "0"),),
    facts=FACTS,
    restore_command="",
    database_bytes=5000,
)
LIVE = LiveDatabase(
    oid=1,
    bytes=1,
    properties=PROPERTIES,
    login_owns_it=True,
    is_empty=False,
    sessions=4,
    protected_sessions=(),
    prepared_transactions=(),
    logical_slots=(),
    subscriptions=(),
    not_carried_over=(),
    rows={},
)
TARGET = Target(
    major=16,
    is_superuser=False,
    may_create_databases=True,
    in_recovery=False,
    writes_wal=False,
    roles=frozenset({"alice", "bob"}),
    memberships=frozenset({"alice"}),
    available_extensions={"plpgsql": "1.0"},
    untrusted_extensions=frozenset(),
    locale_providers=frozenset({"libc"}),
    collation_versions={},
    standbys=(),
    free_bytes=10_000,
    live=LIVE,
)


def plan(manifest=MANIFEST, target=TARGET, options=None, **arguments):
    return plan_restore(manifest, target, options or RestoreOptions(), database="shop", now=NOW, **arguments)


def facts(**changes):
    return replace(MANIFEST, facts=replace(FACTS, **changes))


def live(**changes):
    return replace(TARGET, live=replace(LIVE, **changes))


def test_nothing_in_the_way():
    """The ordinary case: replaced by a swap, no blocker, no remark."""
    made = plan()
    assert (made.blockers, made.warnings) == ((), ())
    assert (made.mode, made.would_work, made.swaps, made.replaces, made.sessions) == ("swap", True, True, True, 4)
    assert made.staging_database.startswith("shop__opsctl_")
    assert made.previous_database == "shop__before_20261123T120000Z"


@pytest.mark.parametrize(
    ("target", "options", "mode", "replaces"),
    [
        (TARGET, RestoreOptions(), "swap", True),
        (replace(TARGET, live=None), RestoreOptions(), "create", False),
        (replace(TARGET, live=None), RestoreOptions(into=True), "create", False),
        (live(is_empty=True), RestoreOptions(into=True), "fill", False),
        (TARGET, RestoreOptions(in_place=True), "in_place", True),
    ],
)
def test_mode(target, options, mode, replaces):
    """How a copy gets its place, and whether that has to be confirmed; only a swap puts something aside."""
    made = plan(target=target, options=options)
    assert (made.mode, made.replaces, made.blockers) == (mode, replaces, ())
    assert (made.previous_database is not None) == (mode == "swap")
    assert (made.staging_database is not None) == (mode in {"swap", "create"})


BLOCKERS = [
    (MANIFEST, replace(TARGET, in_recovery=True), "standby"),
    (MANIFEST, replace(TARGET, may_create_databases=False), "--in-place"),
    (replace(MANIFEST, pg_dump_version="17.0"), TARGET, "pg_dump 17"),
    (facts(database=replace(PROPERTIES, locale_provider="icu")), TARGET, "icu"),
    (MANIFEST, replace(TARGET, has_locale=False), "no locale de_DE.UTF-8"),
    (facts(extensions=(ExtensionFacts("postgis", "3.4", "public"),)), TARGET, "postgis 3.4"),
    (
        facts(extensions=(ExtensionFacts("timescaledb", "2", "public"),)),
        replace(TARGET, available_extensions={"timescaledb": "2"}),
        "timescaledb_pre_restore",
    ),
    (
        facts(extensions=(ExtensionFacts("pg_cron", "1.6", "public"),)),
        replace(TARGET, available_extensions={"pg_cron": "1.6"}),
        "cron.database_name",
    ),
    (
        facts(extensions=(ExtensionFacts("vector", "0.8", "public"),)),
        replace(TARGET, available_extensions={"vector": "0.8"}, untrusted_extensions=frozenset({"vector"})),
        "only a superuser can create extension vector",
    ),
    (facts(superuser_objects=("event trigger e",)), TARGET, "only a superuser can restore event trigger e"),
    (facts(roles=("alice", "carol")), TARGET, "carol"),
    (facts(owners=(OwnedObjects("bob", 9, ("table x",)),)), TARGET, "bob, the owner of table x and 8 more"),
    (MANIFEST, live(login_owns_it=False), "only its owner, alice"),
    (MANIFEST, live(prepared_transactions=("tx 1",)), "tx 1"),
    (MANIFEST, live(logical_slots=("slot 1",)), "slot 1"),
    (MANIFEST, live(subscriptions=("sub 1",)), "sub 1"),
    (MANIFEST, live(protected_sessions=("pid 7 (root, psql)",)), "pid 7"),
    (MANIFEST, replace(TARGET, free_bytes=4096), "4.0 KiB free"),
    (replace(MANIFEST, database_bytes=SMALL_BYTES + 1), replace(TARGET, free_bytes=None), "--accept-unknown-disk"),
]


@pytest.mark.parametrize(("manifest", "target", "word"), BLOCKERS, ids=[word for *_, word in BLOCKERS])
def test_obstacle(manifest, target, word):
    """Each obstacle alone makes exactly one blocker, which names it."""
    made = plan(manifest, target)
    assert not made.would_work
    (obstacle,) = made.obstacles
    assert word in obstacle.reason + obstacle.hint
    assert obstacle.hint.endswith(".")
    assert made.refusal is not None
    assert made.refusal.hint == obstacle.hint


def test_obstacles_add_up():
    """Everything in the way is said at once, so that one look is enough."""
    target = replace(live(prepared_transactions=("tx 1",), subscriptions=("sub 1",)), in_recovery=True, free_bytes=1)
    made = plan(facts(roles=("alice", "carol"), superuser_objects=("publication p",)), target)
    assert len(made.blockers) == 6
    assert "(and 5 more" in made.refusal.message


@pytest.mark.parametrize(
    ("manifest", "target", "options", "word"),
    [
        (replace(MANIFEST, pg_dump_version="16.9"), replace(TARGET, major=15), None, "older (15)"),
        (replace(MANIFEST, pg_dump_version="18.1"), replace(TARGET, major=17), None, "older (17)"),
        (MANIFEST, replace(TARGET, writes_wal=True), None, "4.9 KiB of WAL"),
        (MANIFEST, replace(TARGET, available_extensions={"plpgsql": "1.1"}), None, "plpgsql is 1.1 here, it was 1.0"),
        (
            MANIFEST,
            replace(TARGET, collation_versions={("libc", "de_DE.UTF-8"): "2.41"}),
            None,
            "2.41 here, it was 2.36",
        ),
        (MANIFEST, replace(TARGET, standbys=("replica at 10.0.0.2",)), None, "replica at 10.0.0.2"),
        (MANIFEST, replace(TARGET, free_bytes=None), None, "unknown"),
        (MANIFEST, live(not_carried_over=("setting x was not carried over",)), None, "setting x"),
        (MANIFEST, TARGET, RestoreOptions(in_place=True), "no undo"),
        (MANIFEST, replace(TARGET, is_superuser=True), None, "loaded by a superuser"),
        (replace(MANIFEST, excluded_tables=("public.log",)), TARGET, None, "public.log"),
        (replace(MANIFEST, warnings=("subscription s was not dumped",)), TARGET, None, "subscription s"),
    ],
)
def test_remark(manifest, target, options, word):
    """What is worth knowing but stops nothing."""
    made = plan(manifest, target, options)
    assert made.would_work, made.blockers
    (warning,) = made.warnings
    assert word in warning


@pytest.mark.parametrize("found", [None, "2.36"])
def test_collation_version_that_is_unknown_or_the_same(found):
    """No remark without a difference."""
    assert plan(target=replace(TARGET, collation_versions={("libc", "de_DE.UTF-8"): found})).warnings == ()


def test_collation_of_icu_goes_by_its_own_locale():
    """Databases of ICU and builtin locales share lc_collate; their versions belong to their own locale."""
    manifest = facts(
        database=replace(PROPERTIES, locale_provider="icu", locale="sv", collate="C", collation_version="153.1")
    )
    versions = {("icu", "de"): "999", ("icu", "sv"): "153.1", ("icu", "C"): "998"}
    target = replace(TARGET, locale_providers=frozenset({"libc", "icu"}), collation_versions=versions)
    assert plan(manifest, target).warnings == ()


def test_superuser_has_no_obstacles_of_rights():
    """A superuser restores every role's objects and everything only a superuser can."""
    manifest = facts(owners=(OwnedObjects("bob", 1, ("table x",)),), superuser_objects=("event trigger e",))
    assert plan(manifest, replace(TARGET, is_superuser=True)).would_work


def test_code_that_somebody_trusted_has_signed_is_no_remark():
    """What a superuser loads runs with all rights; that is said unless backups must be signed."""
    assert plan(target=replace(TARGET, is_superuser=True), options=RestoreOptions(is_trusted=True)).warnings == ()


def test_standby_that_can_be_told_is_no_remark():
    """As many replica_urls as standbys: nothing to say."""
    target = replace(TARGET, standbys=("a", "b"))
    assert plan(target=target, options=RestoreOptions(replica_count=2)).warnings == ()
    assert len(plan(target=target, options=RestoreOptions(replica_count=1)).warnings) == 1


def test_options_take_obstacles_away():
    """--no-owner and --no-privileges need fewer roles; --into needs nothing of the live database."""
    foreign = facts(roles=("bob", "carol", "dora"), owners=(OwnedObjects("carol", 1, ("table x",)),))
    assert "carol, dora" in plan(foreign).blockers[0]
    (blocker,) = plan(foreign, options=RestoreOptions(no_owner=True)).blockers
    assert "dora" in blocker
    assert "carol" not in blocker
    assert plan(foreign, options=RestoreOptions(no_owner=True, no_privileges=True)).would_work
    beside = replace(TARGET, live=None)
    assert plan(target=beside, options=RestoreOptions(into=True)).would_work


def test_database_that_is_made_anew_needs_the_roles_of_its_grants():
    """Grants on the database itself come from the manifest when there is no live one; quoted names too."""
    acl = ("=Tc/alice", "alice=CTc/alice", '"the ""one"""=c/alice', "carol=C*/alice")
    manifest = facts(database=replace(PROPERTIES, acl=acl))
    assert plan(manifest).would_work, "a swap carries over the live database's grants"
    (blocker,) = plan(manifest, replace(TARGET, live=None)).blockers
    assert 'carol, the "one"' in blocker
    assert plan(manifest, replace(TARGET, live=None), RestoreOptions(no_privileges=True)).would_work


def test_obstacle_of_the_tools():
    """What this host's programs cannot read is an obstacle like any other."""
    obstacle = Obstacle("no pg_restore", "Install it.")
    assert plan(other_obstacles=[obstacle]).obstacles == (obstacle,)


@pytest.mark.parametrize(
    ("options", "target", "word"),
    [
        (RestoreOptions(in_place=True), replace(TARGET, live=None), "no live database"),
        (RestoreOptions(in_place=True, jobs=2), TARGET, "--jobs"),
        (RestoreOptions(into=True), TARGET, "not empty"),
        (RestoreOptions(role="nobody"), TARGET, "nobody"),
        (RestoreOptions(role="bob"), TARGET, "no member of bob"),
    ],
)
def test_options_that_cannot_work(options, target, word):
    """What was asked for may be impossible for itself."""
    (blocker,) = plan(target=target, options=options).blockers
    assert word in blocker


counts = st.one_of(st.none(), st.just("not there"), st.integers(0, 1000))


@given(tables=st.lists(st.tuples(counts, counts), max_size=8))
def test_losses_are_the_tables_that_shrink(tables):
    """A loss is a table with more rows now than in the backup, or one the backup does not have; the largest first.

    What is unknown on either side is no loss, and is named. Beside the live database nothing is lost.
    """
    names = [f"t{n}" for n in range(len(tables))]
    before = {name: rows for name, (rows, _) in zip(names, tables, strict=True) if rows != "not there"}
    now = {name: rows for name, (_, rows) in zip(names, tables, strict=True) if rows != "not there"}
    manifest = facts(tables=tuple(TableFacts("public", *each) for each in before.items()))
    target = live(rows={("public", name): rows for name, rows in now.items()})
    known = {name: (now[name], before.get(name, 0)) for name in now if None not in {now[name], before.get(name, 0)}}
    unknown = {name for name in now if name not in known and now[name] != 0}

    made = plan(manifest, target)
    assert {loss.name: (loss.live_rows, loss.backup_rows) for loss in made.losses} == {
        name: rows for name, rows in known.items() if rows[0] > rows[1]
    }
    assert all(loss.in_backup == (loss.name in before) for loss in made.losses)
    lost = [loss.live_rows - loss.backup_rows for loss in made.losses]
    assert (lost, made.lost_rows) == (sorted(lost, reverse=True), sum(lost))
    assert set(made.uncounted) == {f"public.{name}" for name in unknown}
    assert made.would_work
    beside = plan(manifest, replace(target, live=replace(target.live, is_empty=True)), RestoreOptions(into=True))
    assert (beside.losses, beside.uncounted) == ((), ())


@given(own=st.booleans(), seconds=st.floats(0.001, 1e6), bytes_=st.integers(0, 1 << 50))
def test_expected_time_is_in_proportion_to_the_size(own, seconds, bytes_):
    """What a drill of this very backup took is what it takes; another backup's time goes by the size of the dumps.

    Nothing takes less than a second that did not take less before.
    """
    measured = MeasuredRestore(MANIFEST.id if own else "shop-other", bytes_, seconds, NOW)
    made = plan(expected=in_proportion(MANIFEST, measured)).expected
    ratio = 1 if own else MANIFEST.dump.bytes / max(1, bytes_)
    assert made.seconds == pytest.approx(max(seconds * ratio, min(seconds, 1)), abs=0.001)
    assert (made.backup_id, made.measured_seconds, made.measured_at) == (measured.backup_id, seconds, NOW)


def test_a_restore_into_this_server_tells_more_than_a_drill_elsewhere(tmp_path):
    """Unless its dump was of quite another size: then the drill does, and without one it is better than nothing."""
    repository = Repository("local", LocalStorage(tmp_path))
    repository.record_evidence(MANIFEST, "counted", "pass", at=NOW, details={"restore_seconds": 7})
    drilled = [Backup((StoredBackup("local", MANIFEST, False, (Evidence("counted", True, NOW),)),))]
    repositories = {"local": repository}
    alike, small = (MeasuredRestore("shop-other", bytes_, 4, NOW) for bytes_ in (900, 90))
    assert [
        (found.measured_by, found.seconds)
        for found in (
            expected_time(MANIFEST, drilled, repositories, alike),
            expected_time(MANIFEST, drilled, repositories, small),
            expected_time(MANIFEST, (), {}, small),
        )
    ] == [("restore", 4.444), ("drill", 7), ("restore", 44.444)]
    assert expected_time(MANIFEST, (), {}) is None


def test_disk_of_a_dump_that_tells_no_size():
    """Three times its SQL is a guess, said where it does not fit; what has no room for the SQL itself is refused."""
    imported = Imported("f", 1, "0", NOW, "name", sql_bytes=8000)  # compressed inside: the dump has 1,000 bytes
    manifest = replace(MANIFEST, database_bytes=None, imported=imported)
    plans = [plan(manifest, replace(TARGET, free_bytes=free)) for free in (24_000, 23_999, 8000, 7999)]
    assert [(each.would_work, len(each.warnings)) for each in plans] == [(True, 0), (True, 1), (True, 1), (False, 0)]
    assert plans[0].database_bytes == 24_000


@given(needed=st.integers(1, 1 << 45), free=st.one_of(st.none(), st.integers(0, 1 << 45)), accepted=st.booleans())
def test_disk(needed, free, accepted):
    """Too little is refused, enough is silent, unknown is always said and refused beyond 1 GiB unless accepted."""
    made = plan(
        replace(MANIFEST, database_bytes=needed),
        replace(TARGET, free_bytes=free),
        RestoreOptions(accept_unknown_disk=accepted),
    )
    if free is None:
        assert made.would_work == (accepted or needed <= SMALL_BYTES)
        assert any("unknown" in each for each in made.blockers + made.warnings)
    else:
        assert made.would_work == (free >= needed)
        assert made.warnings == ()


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda name: len(name.encode()) < 64)


@given(database=names, hexes=st.integers(0, 0xFFFFFFFF), seconds=st.integers(0, 10**8))
def test_names_fit_and_are_recognised(database, hexes, seconds):
    """Whatever the database is called: names of ours have at most 63 bytes, are valid text, and are known as ours."""
    at = NOW + timedelta(seconds=seconds)
    for name in (staging_name(database, f"{hexes:08x}"), previous_name(database, at)):
        assert len(name.encode()) <= 63
        assert is_ours(name)
    assert put_aside_at(previous_name(database, at)) == at
    assert cut(database) == database or len(database.encode()) > 38


@settings(max_examples=50)
@given(database=names, moves=st.lists(st.integers(-100_000, 100_000), max_size=12))
def test_each_database_put_aside_has_a_later_name(database, moves):
    """Undo takes the latest name: that is the last one put aside, in the same second and after the clock went back."""
    taken = []
    for seconds in moves:
        name = previous_name(database, NOW + timedelta(seconds=seconds), taken)
        assert all(name > each for each in taken)
        taken.append(name)


@given(st.lists(names, min_size=2, max_size=8, unique=True))
def test_long_names_stay_apart(databases):
    """Two databases never share the names of ours, however much of their names is the same."""
    shortened = {cut("x" * 40 + each) for each in databases}
    assert len(shortened) == len(databases)
