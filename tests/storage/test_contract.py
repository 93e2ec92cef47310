"""What every storage promises (opsctl/storage/__init__.py), shown by each of them."""

import threading
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from opsctl.errors import RepositoryUnreachable
from opsctl.storage.local import LocalStorage

MIB = 1 << 20
EPOCH = datetime.fromtimestamp(0, UTC)
SOON = timedelta(minutes=10)
MANIFEST = "manifest.json"

ODD_NAMES = [
    "with space",
    "50%",
    "100%25",
    "%2Ehidden",
    ".hidden",
    "a+b",
    "a&b=c",
    "naïve-ключ-日本",
    "it's",
    "semi;colon, comma",
    "hash#query?",
    "tilde~(paren)[x]{y}",
    "a:b@c$d!e*f",
]


@pytest.fixture
def storage(place):
    opened = place.open()
    opened.prepare()
    return opened


def keys(storage, prefix=""):
    return sorted(entry.key for entry in storage.entries(prefix))


def pattern(size):
    """Bytes that differ from place to place, so that a swapped or repeated part shows."""
    block = b"".join(number.to_bytes(4, "big") for number in range(MIB // 4))
    whole, rest = divmod(size, MIB)
    return b"".join(sha256(bytes([n])).digest() + block[32:] for n in range(whole)) + block[:rest]


def published(storage, folder, manifest=b"{}", retain_until=None, **files):
    publication = storage.begin(folder, retain_until=retain_until)
    for name, data in files.items():
        with publication.file(name) as file:
            file.write(data)
    publication.publish(MANIFEST, manifest)


def at_once(number, work):
    """Run ``work(0)`` to ``work(number - 1)`` at the same moment; what each returned, or its FileExistsError."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(index):
        barrier.wait(timeout=30)
        try:
            results[index] = work(index)
        except FileExistsError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


# Small files


def test_prepare_says_whether_anything_was_there(place):
    """True before the first file, false afterwards, for whoever asks."""
    first = place.open()
    assert first.prepare()
    first.create("RESTORE.txt", b"text")

    assert not first.prepare()
    assert not place.open().prepare()


def test_what_is_created_is_read_back(place, storage):
    """The same bytes, by every way of reading, for another run as well."""
    for data in (b"", b"x", bytes(range(256)) * 999):
        key = f"shop/a/{len(data)}"
        storage.create(key, data)
        with place.open().open(key) as file:
            assert file.read() == data
        assert place.open().read(key) == data


def test_create_never_replaces(storage):
    """The second one is FileExistsError and changes nothing; an empty file is a file as well."""
    for key, data in {"shop/manifest.json": b"first", "shop/pin": b""}.items():
        storage.create(key, data)
        with pytest.raises(FileExistsError):
            storage.create(key, b"second")

        assert storage.read(key) == data
    assert keys(storage) == ["shop/manifest.json", "shop/pin"]


def test_of_many_creators_one_wins(place, storage):
    """Exactly one, where the storage can tell; what stays is one of theirs and whole in any case."""
    data = [bytes([number]) * 10_000 for number in range(6)]
    results = at_once(6, lambda number: place.open().create("shop/manifest.json", data[number]))
    won = [number for number, result in enumerate(results) if result is None]
    stored = storage.read("shop/manifest.json")

    assert stored in [data[number] for number in won]
    if place.has_conditional_put:
        assert len(won) == 1
        assert keys(storage) == ["shop/manifest.json"]
    # rclone's memory of a folder that several writers made at once may have it twice, and lists its files so.
    assert set(keys(storage)) == {"shop/manifest.json"}


def test_missing_files_are_missing(storage):
    """FileNotFoundError, whatever stands beside; removing one that is not there is fine."""
    storage.create("shop/a/manifest.json", b"{}")
    for key in ("shop/a/dump", "shop/a/manifest", "shop/a", "nothing"):
        if key != "shop/a":
            with pytest.raises(FileNotFoundError):
                storage.read(key)
            with pytest.raises(FileNotFoundError):
                storage.open(key)
            storage.delete(key)
        storage.delete_folder("nothing")

    assert keys(storage) == ["shop/a/manifest.json"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(storage, name):
    """A key is its characters: in files, in folders, in listings, and for removal."""
    key = f"{name}/{name}/x{name}"
    storage.create(key, name.encode())

    assert keys(storage) == keys(storage, name) == keys(storage, f"{name}/{name}") == [key]
    assert storage.folders() == storage.folders(name) == [name]
    assert storage.read(key) == name.encode()
    storage.delete(key)
    assert keys(storage) == []


# Looking


def test_entries_are_files_with_keys_sizes_and_times(storage):
    """All below a folder, and nothing of a folder whose name begins alike."""
    before = datetime.now(UTC) - timedelta(minutes=1)
    for key, data in {"shop/a/dump": b"12345", "shop/a/evidence/one": b"", "shopping/b": b"1"}.items():
        storage.create(key, data)
    found = {entry.key: entry for entry in storage.entries("shop")}

    assert {key: entry.bytes for key, entry in found.items()} == {"shop/a/dump": 5, "shop/a/evidence/one": 0}
    assert all(before < entry.modified_at < datetime.now(UTC) + timedelta(minutes=1) for entry in found.values())
    assert keys(storage) == ["shop/a/dump", "shop/a/evidence/one", "shopping/b"]
    assert storage.folders() == ["shop", "shopping"]
    assert storage.folders("shop") == ["a"]
    assert storage.folders("shop/a") == ["evidence"]
    assert storage.tree("shop") == {"a": list(storage.entries("shop"))}


def test_what_is_not_there_is_empty(place):
    """Nothing listed, and old as the world; looking creates nothing."""
    storage = place.open()

    assert (keys(storage), keys(storage, "shop"), storage.folders(), storage.folders("shop")) == ([], [], [], [])
    assert storage.tree("shop") == {}
    assert storage.modified_at("shop/a") == EPOCH
    assert storage.prepare()


def test_a_folder_is_as_old_as_its_newest_file(storage):
    storage.create("shop/a/dump", b"x")

    assert abs(datetime.now(UTC) - storage.modified_at("shop/a")) < timedelta(minutes=1)


def test_ten_thousand_files(crowded):
    """Listings do not end with their first page."""
    found = keys(crowded, "shop")
    folders = crowded.folders("shop")

    assert len(found) == len(set(found)) == 10_000
    assert len(folders) == 50
    assert len(keys(crowded, f"shop/{folders[-1]}")) == 200


# Publishing


def test_a_publication_counts_as_a_whole(place, storage):
    """Until it is published its last file is missing and it can be told from one that is; then all of it is there."""
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        for piece in (b"one, ", b"", b"two"):
            file.write(piece)
    with publication.file("empty"):
        pass
    other = place.open()
    with pytest.raises(FileNotFoundError):
        other.read(f"shop/a/{MANIFEST}")
    assert [other.unpublished(name) or name for name in other.folders("shop")] == ["a"]
    assert len(keys(other, "shop")) == 2

    publication.publish(MANIFEST, b"{}")
    assert other.folders("shop") == ["a"]
    assert other.unpublished("a") is None
    assert {key: other.read(key) for key in keys(other)} == {
        "shop/a/dump": b"one, two",
        "shop/a/empty": b"",
        f"shop/a/{MANIFEST}": b"{}",
    }


def test_abandoning_what_is_published_removes_nothing(storage):
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        file.write(b"x")
    publication.publish(MANIFEST, b"{}")
    publication.abandon()

    assert keys(storage) == ["shop/a/dump", f"shop/a/{MANIFEST}"]


def test_publishing_never_replaces(storage):
    """A name that is taken is FileExistsError, at the beginning or at the end; the first one stays whole."""
    published(storage, "shop/a", b"first", dump=b"the first")
    with pytest.raises(FileExistsError):
        published(storage, "shop/a", b"second", dump=b"the second")

    assert storage.read(f"shop/a/{MANIFEST}") == b"first"
    assert storage.read("shop/a/dump") == b"the first"


def test_of_many_publications_one_wins(place):
    """The folder that is there in the end is one of them; exactly one, where the storage can tell."""
    manifests = [b"%d" % number for number in range(4)]
    results = at_once(4, lambda number: published(place.open(), "shop/a", manifests[number], dump=b"the same"))
    won = [manifests[number] for number, result in enumerate(results) if result is None]
    storage = place.open()

    assert won or not place.has_conditional_put
    if won:
        assert storage.read(f"shop/a/{MANIFEST}") in won
        assert storage.read("shop/a/dump") == b"the same"
    if place.has_conditional_put:
        assert len(won) == 1


def test_what_is_abandoned_is_gone(storage):
    """Nothing is left, however often that is said; what others have stored stays."""
    published(storage, "shop/b", dump=b"another's")
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        file.write(b"x")
    publication.abandon()
    publication.abandon()

    assert storage.folders("shop") == ["b"]
    assert len(keys(storage)) == 2


def test_the_name_of_what_was_abandoned_is_free(storage):
    storage.begin("shop/a").abandon()
    published(storage, "shop/a", dump=b"x")

    assert storage.folders("shop") == ["a"]


# Long files


def test_a_long_stream_in_short_writes(place, storage):
    """40 MiB in pieces of no particular size, read back in one go, in pieces, and as far as one likes."""
    data = pattern(40 * MIB)
    publication = storage.begin("shop/a")
    with publication.file("dump") as file:
        position, step = 0, 0
        while position < len(data):
            step = step * 31 % 262_139 + 1000
            file.write(data[position : position + step])
            position += step
    publication.publish(MANIFEST, b"{}")

    reader = place.open()
    assert {entry.key: entry.bytes for entry in reader.entries("shop")}["shop/a/dump"] == len(data)
    digest = sha256()
    with reader.open("shop/a/dump") as file:
        while piece := file.read(1_000_003):
            digest.update(piece)
    assert digest.hexdigest() == sha256(data).hexdigest()
    with reader.open("shop/a/dump") as file:
        assert file.read(7) == data[:7]
    with reader.open("shop/a/dump") as file:
        assert file.read() == data


def test_one_write_may_be_long(storage):
    """A piece larger than any part."""
    data = pattern(33 * MIB)
    published(storage, "shop/a", dump=data)

    assert storage.read("shop/a/dump") == data


def has_grown_lately(storage, folder):
    """Whether a part arrives within ten seconds: parts are on their way while the stream goes on."""
    for _ in range(100):
        if abs(datetime.now(UTC) - storage.modified_at(folder)) < timedelta(minutes=1):
            return True
        time.sleep(0.1)
    return False


def test_a_long_stream_that_is_abandoned_leaves_nothing(place, storage):
    """While it is written others see that something is; then nothing."""
    publication = storage.begin("shop/a")

    def write():
        with publication.file("dump") as file:
            file.write(pattern(40 * MIB))
            other = place.open()
            assert [other.unpublished(name) or name for name in other.folders("shop")] == ["a"]
            assert has_grown_lately(other, f"shop/{other.folders('shop')[0]}")
            with pytest.raises(FileExistsError):
                other.begin("shop/a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    publication.abandon()

    assert storage.folders("shop") == []
    assert keys(storage) == []


def test_a_folder_being_written_can_be_removed(place, storage):
    """As after a kill: nobody is left to abandon it, and another run clears it away."""
    publication = storage.begin("shop/a")

    def write():
        with publication.file("dump") as file:
            file.write(pattern(17 * MIB))
            other = place.open()
            for name in other.folders("shop"):
                other.delete_folder(f"shop/{name}")
            assert other.folders("shop") == []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    publication.abandon()


def test_removing_a_folder_removes_all_of_it(storage):
    """With everything below it; nothing beside it, and nothing whose name begins alike."""
    published(storage, "shop/a", dump=b"x")
    storage.create("shop/a/evidence/one", b"")
    storage.create("shop/ab/dump", b"")
    for _ in range(2):
        storage.delete("shop/a/dump")
        storage.delete_folder("shop/a")

    assert storage.folders("shop") == ["ab"]
    assert keys(storage) == ["shop/ab/dump"]


# Versions and locks, where there are none; test_versions.py has the others


def test_a_lock_that_is_not_configured_means_nothing(storage):
    """What is published with it can be removed; asking about it, and making it longer, are fine."""
    published(storage, "shop/a", retain_until=datetime.now(UTC) + SOON, dump=b"x")
    storage.extend_lock("shop/a", datetime.now(UTC) + SOON)
    assert storage.locked_until("shop/a") is None
    assert storage.locked_until("nothing") is None

    storage.delete_folder("shop/a")
    assert keys(storage) == []


def test_what_is_removed_is_not_hidden_but_gone(place, storage):
    """Also in buckets that keep versions: nothing is left to be paid for, and nothing comes back."""
    published(storage, "shop/a", dump=b"x")
    storage.create("shop/a/pin", b"")
    storage.delete("shop/a/pin")
    storage.delete_folder("shop/a")

    assert list(storage.hidden()) == list(storage.hidden("shop")) == []
    if place.service is not None and place.service.name != "rclone":
        assert place.service.versions(place.bucket) == []


def test_trying_to_write_leaves_nothing(place):
    """Not a file, not a version, not an upload that was begun; and the repository is not made by it."""
    storage = place.open()
    storage.try_write()
    assert storage.folders() == list(storage.entries()) == list(storage.hidden()) == []
    if place.service is None:
        assert not storage.root.exists()
        storage.prepare()
        storage.try_write()
        assert list(storage.root.iterdir()) == []
        (storage.root / "file").write_bytes(b"")
        with pytest.raises(RepositoryUnreachable):
            LocalStorage(storage.root / "file" / "below").try_write()


def test_the_clock_of_the_service(place, storage):
    """A service has one, this host's disk has none of its own."""
    now = storage.now()
    if place.service is None:
        assert now is None
    else:
        assert abs(datetime.now(UTC) - now) < timedelta(minutes=1)
