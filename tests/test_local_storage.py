"""A folder as storage: private, whole or not at all, and never replacing anything."""

import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.errors import ConfigurationError, RepositoryUnreachable
from opsctl.storage import open_storage
from opsctl.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "repository")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def published(storage, folder, **files):
    publication = storage.begin(folder)
    for name, data in files.items():
        with publication.file(name) as file:
            file.write(data)
    publication.publish("manifest.json", b"{}")


# Reading


def test_what_does_not_exist_yet_is_empty(storage):
    """A repository that was never written to has nothing in it, and looking does not create it."""
    assert list(storage.entries()) == []
    assert list(storage.entries("shop")) == []
    assert storage.folders() == []
    assert not storage.root.exists()


def test_entries_are_files_with_keys_sizes_and_times(storage):
    """Every file below a folder, its key relative to the repository with slashes."""
    before = datetime.now(UTC) - timedelta(minutes=1)
    storage.create("shop/a/manifest.json", b"12345")
    storage.create("shop/a/evidence/one.json", b"")
    storage.create("shopping/b/manifest.json", b"1")
    found = {entry.key: entry for entry in storage.entries("shop")}

    assert {key: entry.bytes for key, entry in found.items()} == {
        "shop/a/manifest.json": 5,
        "shop/a/evidence/one.json": 0,
    }
    assert all(before < entry.modified_at < datetime.now(UTC) + timedelta(minutes=1) for entry in found.values())
    assert len(list(storage.entries())) == 3
    assert storage.folders() == ["shop", "shopping"]
    assert storage.folders("shop") == ["a"]


def test_links_are_not_followed(storage, tmp_path):
    """A link to a folder elsewhere is no part of the repository: nothing behind it is listed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    storage.create("shop/a", b"")
    (storage.root / "shop" / "link").symlink_to(outside)

    assert storage.folders("shop") == []
    assert "file" not in " ".join(entry.key for entry in storage.entries("shop"))


def test_missing_files_are_missing(storage):
    """What is not there is FileNotFoundError: whoever asked knows what that means."""
    for read in (storage.open, storage.read):
        with pytest.raises(FileNotFoundError):
            read("shop/a/manifest.json")


def test_a_folder_has_a_time_of_its_own(storage):
    """A folder without files is as old as itself; one that is gone is older than everything."""
    (storage.root / "shop" / ".a.partial").mkdir(parents=True)

    assert datetime.now(UTC) - storage.modified_at("shop/.a.partial/") < timedelta(minutes=1)
    assert storage.modified_at("shop/gone") == datetime.fromtimestamp(0, UTC)


# Writing


@given(st.binary(max_size=2000))
def test_create_and_read(tmp_path_factory, data):
    """Any bytes come back."""
    storage = LocalStorage(tmp_path_factory.mktemp("any"))
    storage.create("a/b", data)

    assert storage.read("a/b") == data
    with storage.open("a/b") as file:
        assert file.read() == data


def test_everything_is_private(storage):
    """Folders 0700, files 0600, whatever the umask."""
    assert storage.prepare()
    published(storage, "shop/a", dump=b"x")
    storage.create("shop/a/evidence/one.json", b"")

    assert {mode(path) for path in [storage.root, *storage.root.rglob("*")] if path.is_dir()} == {0o700}
    assert {mode(path) for path in storage.root.rglob("*") if path.is_file()} == {0o600}


def test_prepare_says_whether_it_created(storage):
    """Only the first one creates the repository."""
    assert [storage.prepare(), storage.prepare()] == [True, False]


def test_create_never_replaces(storage):
    """A second file of the same name is FileExistsError; the first one stays and nothing else is left."""
    storage.create("shop/manifest.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create("shop/manifest.json", b"second")

    assert storage.read("shop/manifest.json") == b"first"
    assert [path.name for path in (storage.root / "shop").iterdir()] == ["manifest.json"]


def test_one_of_many_wins(storage):
    """Of several that create the same file at once exactly one does, and the file is whole."""
    storage.prepare()
    won, barrier = [], threading.Barrier(8)

    def create(number):
        barrier.wait(timeout=30)
        try:
            storage.create("manifest.json", bytes([number]) * 10_000)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert len(won) == 1
    assert storage.read("manifest.json") == bytes(won) * 10_000


def test_a_publication_appears_as_a_whole(storage):
    """Until it is published nothing of it has its name; then all of it has, and the partial folder is gone."""
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        file.write(b"one, ")
        file.write(b"two")
    assert not (storage.root / "shop/a").exists()
    assert storage.folders("shop") == [".a.partial"]

    publication.publish("manifest.json", b"{}")
    assert storage.folders("shop") == ["a"]
    assert storage.read("shop/a/dump") == b"one, two"


@pytest.mark.parametrize("there", [{}, {"dump": b"the first"}], ids=["empty", "full"])
def test_publishing_never_replaces(storage, there):
    """A folder of that name stays what it is, an empty one too: plain rename would have taken its place."""
    target = storage.root / "shop/a"
    target.mkdir(parents=True)
    for name, data in there.items():
        (target / name).write_bytes(data)
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        file.write(b"x")
    with pytest.raises(FileExistsError):
        publication.publish("manifest.json", b"{}")
    publication.abandon()

    assert {path.name: path.read_bytes() for path in target.iterdir()} == there
    assert storage.folders("shop") == ["a"]


def test_what_is_abandoned_is_gone(storage):
    """Nothing is left of a publication that was given up, however often that is said."""
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        file.write(b"x")
    publication.abandon()
    publication.abandon()

    assert storage.folders("shop") == []


def test_the_same_folder_is_begun_once(storage):
    """Two runs never write into the same partial folder."""
    storage.begin("shop/a")
    with pytest.raises(FileExistsError):
        storage.begin("shop/a")


# Removing


def test_removing_what_is_not_there_is_fine(storage):
    """Removal is over when it is gone, whoever did it."""
    storage.create("shop/a/dump", b"x")
    for _ in range(2):
        storage.delete("shop/a/dump")
        storage.delete_folder("shop/a")

    assert storage.folders("shop") == []


# What goes wrong


@pytest.mark.parametrize(
    "use",
    [
        lambda storage: list(storage.entries("shop")),
        lambda storage: storage.folders(),
        lambda storage: storage.prepare(),
        lambda storage: storage.create("shop/a", b""),
        lambda storage: storage.read("shop/a"),
        lambda storage: storage.delete("shop/a"),
        lambda storage: storage.begin("shop/a"),
        lambda storage: storage.modified_at("shop/a"),
    ],
    ids=["entries", "folders", "prepare", "create", "read", "delete", "begin", "modified_at"],
)
def test_a_file_in_place_of_the_repository(tmp_path, use):
    """The system's refusal is a repository that cannot be used, named, with a hint."""
    (tmp_path / "file").write_text("")

    with pytest.raises(RepositoryUnreachable) as caught:
        use(LocalStorage(tmp_path / "file"))
    assert str(tmp_path / "file") in caught.value.message
    assert caught.value.hint


def test_free_bytes_of_what_does_not_exist_yet(storage):
    """The room of the disk it would be on."""
    assert storage.free_bytes() > 0


# Addresses


def test_addresses(tmp_path):
    """A path and file:// are folders, percent-encoding undone; another scheme is a configuration error."""
    assert open_storage(str(tmp_path)).root == tmp_path
    assert open_storage("file:///var/my%20backups").address == "/var/my backups"
    assert open_storage("file://localhost/var/x").address == "/var/x"
    for url in ("ftp://host/x", "file://elsewhere/x"):
        with pytest.raises(ConfigurationError):
            open_storage(url)
