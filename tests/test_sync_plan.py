"""What is copied where, decided without any storage: sync and prune never undo each other."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl import prune, sync
from opsctl.catalog import Backup, Catalog, Evidence, StoredBackup
from opsctl.manifest import EVIDENCE_LEVELS, DatabaseProperties, Facts, Manifest, StoredFile
from opsctl.retention import Policy

NOW = datetime(2027, 1, 4, 12, tzinfo=UTC)
DATABASE = DatabaseProperties("owner", "UTF8", "libc", "C", "C", None, None, None, None, -1, ())
MANIFEST = Manifest(
    id="",
    database="shop",
    started_at=NOW,
    finished_at=NOW,
    opsctl_version="1",
    pg_dump_version="18.1",
    server_version="18.1",
    host="here",
    files=(StoredFile("dump.zst", 9, 9, "a", "b"),),
    facts=Facts("none", (), (), (), (), DATABASE),
    restore_command="",
)
NAMES = ("first", "second", "third")
HOMES = {"shop": NAMES}

policies = st.builds(
    Policy,
    keep_last=st.none() | st.integers(0, 4),
    keep_daily=st.none() | st.integers(0, 5),
    keep_weekly=st.none() | st.integers(0, 3),
    keep_monthly=st.none() | st.integers(0, 3),
    keep_within=st.none() | st.integers(0, 20).map(lambda days: timedelta(days=days)),
)


@st.composite
def backup(draw):
    """One backup with a copy in at least one repository: pinned, proven or damaged there or not."""
    hours = draw(st.integers(-48, 90 * 24))
    manifest = replace(
        MANIFEST,
        id=f"shop-{hours:05}",
        started_at=NOW - timedelta(hours=hours),
        system_identifier=draw(st.sampled_from(("7316", "7316", "9025"))),
    )
    copies = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        levels = draw(st.lists(st.tuples(st.sampled_from(EVIDENCE_LEVELS), st.booleans()), max_size=2))
        evidence = tuple(Evidence(level, passed, NOW + timedelta(hours=n)) for n, (level, passed) in enumerate(levels))
        copies.append(StoredBackup(name, manifest, draw(st.integers(0, 9)) == 0, evidence))
    return tuple(copies)


stores = st.lists(backup(), max_size=25, unique_by=lambda copies: copies[0].manifest.id)


def catalogs_of(store):
    found = {name: Catalog() for name in NAMES}
    for copies in store:
        for copy in copies:
            found[copy.repository].backups.append(Backup((copy,)))
    return found


def after_sync(catalogs, missing):
    """What the copying of a plan leaves: the pin, and the evidence that passed, go along."""
    for each in missing:
        copies = each.backup.copies
        evidence = tuple(evidence for copy in copies for evidence in copy.evidence if evidence.passed)
        made = StoredBackup(each.to, each.backup.manifest, each.backup.pinned, evidence)
        catalogs[each.to].backups.append(Backup((made,)))


def after_prune(catalogs, plan):
    gone = {line.place for line in plan.remove}
    for name, catalog in catalogs.items():
        catalog.backups = [each for each in catalog.backups if (name, each.id) not in gone]


@given(stores, st.fixed_dictionaries(dict.fromkeys(NAMES, policies)))
@settings(max_examples=60)
def test_sync_and_prune_never_undo_each_other(store, retention):
    """What was copied is not pruned at once; what was pruned comes back only in place of a damaged copy; it ends."""
    catalogs = catalogs_of(store)
    pruned = set()
    for _ in range(4):
        missing = sync.plan(catalogs, retention, HOMES, now=NOW)
        copied = {(each.to, each.backup.id) for each in missing}
        assert not copied & pruned
        after_sync(catalogs, missing)
        assert sync.plan(catalogs, retention, HOMES, now=NOW) == []
        plan = prune.plan(catalogs, retention, now=NOW)
        assert not copied & {line.place for line in plan.remove}
        pruned |= {line.place for line in plan.remove if not line.backup.failed}
        if not missing and not plan.remove:
            return
        after_prune(catalogs, plan)
    raise AssertionError("after four rounds there is still something to do")


@given(stores, st.fixed_dictionaries(dict.fromkeys(NAMES, policies)))
@settings(max_examples=40)
def test_only_intact_copies_are_sources(store, retention):
    """A repository never gets what it has, nor anything from a place where it is damaged."""
    catalogs = catalogs_of(store)
    for each in sync.plan(catalogs, retention, HOMES, now=NOW):
        assert each.to not in each.backup.repositories
        assert not any(copy.failed for copy in each.backup.copies)
        assert each.backup.id not in {own.id for own in catalogs[each.to].backups}


@given(stores, st.fixed_dictionaries(dict.fromkeys(NAMES, policies)))
@settings(max_examples=40)
def test_the_newest_proven_copy_of_each_repository_stays(store, retention):
    """What was proven elsewhere adds to what is kept, and never takes the place of a copy that was itself proven."""
    catalogs = catalogs_of(store)
    gone = {line.place for line in prune.plan(catalogs, retention, now=NOW).remove}
    for name, catalog in catalogs.items():
        copies = [copy for backup in catalog.backups for copy in backup.copies if backup.created_at <= NOW]
        for server in {copy.manifest.system_identifier for copy in copies}:
            for level in ("restored", "counted", "content"):
                enough = EVIDENCE_LEVELS[EVIDENCE_LEVELS.index(level) :]
                proven = [
                    copy.manifest
                    for copy in copies
                    if copy.manifest.system_identifier == server and copy.proven and copy.proven.level in enough
                ]
                newest = max(proven, key=lambda manifest: manifest.started_at, default=None)
                assert newest is None or (name, newest.id) not in gone


def test_a_repository_that_did_not_answer_is_left_alone():
    """Neither a source nor a target: what is in it is unknown."""
    catalogs = catalogs_of([(StoredBackup("first", replace(MANIFEST, id="shop-1"), pinned=False, evidence=()),)])
    del catalogs["third"]

    assert [each.to for each in sync.plan(catalogs, dict.fromkeys(NAMES, Policy()), HOMES, now=NOW)] == ["second"]


def test_a_proof_elsewhere_brings_nothing_back():
    """A copy that was let go although another was proven is not copied there again for that proof."""
    proof = (Evidence("restored", passed=True, at=NOW),)
    old, new = (replace(MANIFEST, id=f"shop-{n}", started_at=NOW - timedelta(hours=n)) for n in (24, 1))
    store = [
        (
            StoredBackup("first", new, pinned=False, evidence=()),
            StoredBackup("second", new, pinned=False, evidence=proof),
        ),
        (
            StoredBackup("first", old, pinned=False, evidence=()),
            StoredBackup("second", old, pinned=False, evidence=proof),
        ),
    ]
    retention = {"first": Policy(keep_last=1), "second": Policy(), "third": Policy(keep_last=1)}
    catalogs = catalogs_of(store)

    plan = prune.plan(catalogs, retention, now=NOW)
    assert [line.place for line in plan.remove] == [("first", "shop-24")]
    after_prune(catalogs, plan)
    assert {(each.to, each.backup.id) for each in sync.plan(catalogs, retention, HOMES, now=NOW)} == {
        ("third", "shop-1")
    }
