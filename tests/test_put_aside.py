"""What restores put aside: what an undo would take away is shown, kept, and goes only when asked or when it is old."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg  # noqa: TID253
import pytest

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def shop(run_opsctl, database):
    """A backup with 100 orders was restored; the database that was live had 90 of them."""
    database.execute(
        """CREATE TABLE orders (id int PRIMARY KEY, state text); CREATE SCHEMA stock; CREATE TABLE stock.items (id int);
           INSERT INTO orders SELECT n, 'new' FROM generate_series(1, 100) n"""
    )
    assert run_opsctl("backup", url=database.url).returncode == 0
    database.execute("DELETE FROM orders WHERE id > 90")
    run = run_opsctl("restore", "latest", "--yes", database.name, url=database.url)
    assert run.returncode == 0, run
    return database


def write(database):
    database.execute("INSERT INTO orders SELECT n, 'later' FROM generate_series(101, 1334) n")
    database.execute("UPDATE orders SET state = 'paid' WHERE id <= 20; DELETE FROM orders WHERE id BETWEEN 31 AND 37")
    database.execute("INSERT INTO stock.items VALUES (1), (2)")
    database.execute("CREATE TABLE notes (body text)")
    database.execute("INSERT INTO notes VALUES ('remember')")


def undo(run_opsctl, database, *arguments):
    return run_opsctl("restore", "--undo", "--yes", database.name, *arguments, url=database.url)


def opened(database, name):
    """A database that was put aside, opened again to look at."""
    admin = replace(database, name="postgres")
    admin.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
    return replace(database, name=name)


def test_undo_shows_what_was_written_since(run_opsctl, shop):
    """Per table: rows inserted, updated, deleted since the swap, most first; in the text and in the document."""
    write(shop)
    asked = run_opsctl("restore", "--undo", url=shop.url)
    run = undo(run_opsctl, shop, "--json")

    assert asked.returncode == 16
    for line in (
        "public.orders: 1,234 inserted, 20 updated, 7 deleted",
        "stock.items: 2 inserted, 0 updated, 0 deleted",
        "public.notes: 1 inserted, 0 updated, 0 deleted",
    ):
        assert line in asked.stderr, asked
    assert run.returncode == 0, run
    assert run.json["result"]["plan"]["written_since_swap"] == [
        {"table": "public.orders", "inserted": 1234, "updated": 20, "deleted": 7},
        {"table": "stock.items", "inserted": 2, "updated": 0, "deleted": 0},
        {"table": "public.notes", "inserted": 1, "updated": 0, "deleted": 0},
    ]


def test_what_is_undone_is_kept_and_barred(run_opsctl, shop):
    """The undone database keeps what was written, and nobody writes to it any more by a stale name."""
    write(shop)
    aside = undo(run_opsctl, shop, "--json").json["result"]["previous_database"]

    assert shop.execute("SELECT count(*) FROM orders") == [(90,)]
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(replace(shop, name=aside).url)
    kept = opened(shop, aside)
    assert kept.execute("SELECT count(*), count(*) FILTER (WHERE state = 'paid') FROM orders") == [(1327, 20)]
    assert kept.execute("SELECT body FROM notes") == [("remember",)]


def test_nothing_written(run_opsctl, shop):
    """Reading is no writing; nothing is said to be lost."""
    shop.execute("SELECT * FROM orders; ANALYZE")
    asked = run_opsctl("restore", "--undo", url=shop.url)
    run = undo(run_opsctl, shop, "--json")

    assert "Nothing was written since the swap." in asked.stderr
    assert run.json["result"]["plan"]["written_since_swap"] == []


def test_undo_of_an_undo_counts_anew(run_opsctl, shop):
    """Every swap is a new beginning: the redo shows what was written since the undo."""
    write(shop)
    assert undo(run_opsctl, shop).returncode == 0
    shop.execute("INSERT INTO orders VALUES (5000, 'after the undo')")
    run = undo(run_opsctl, shop, "--json")

    assert run.returncode == 0, run
    assert run.json["result"]["plan"]["written_since_swap"] == [
        {"table": "public.orders", "inserted": 1, "updated": 0, "deleted": 0}
    ]
    assert shop.execute("SELECT count(*) FROM orders") == [(1327,)]


@pytest.mark.parametrize("loss", ["state folder", "statistics"])
def test_what_nobody_knows_is_said_to_be_unknown(run_opsctl, shop, loss):
    """Without the record of the swap, or after the server's counters were reset, it is no "nothing"."""
    if loss == "state folder":
        shutil.rmtree(run_opsctl.state)
    else:
        shop.execute("SELECT pg_stat_reset()")
    asked = run_opsctl("restore", "--undo", url=shop.url)
    run = undo(run_opsctl, shop, "--json")

    assert run.returncode == 0, run
    assert "What was written since the swap is unknown here" in asked.stderr
    assert run.json["result"]["plan"]["written_since_swap"] is None
    assert shop.execute("SELECT count(*) FROM orders") == [(90,)]


# What goes, and when


def previous_names(databases_like, database):
    return [name for name in databases_like(database) if "__before_" in name]


def age(database, name, back):
    """Put aside that long ago, by its name."""
    older = f"{database.name}__before_{datetime.now(UTC) - back:%Y%m%dT%H%M%SZ}"
    replace(database, name="postgres").execute(f'ALTER DATABASE "{name}" RENAME TO "{older}"')
    return older


@pytest.fixture
def three_aside(run_opsctl, shop, databases_like):
    """Put aside three days, two hours and a moment ago, and a database of somebody else that only looks like it."""
    (first,) = previous_names(databases_like, shop)
    ages = [age(shop, first, timedelta(days=3))]
    for back in (timedelta(hours=2), None):
        run = run_opsctl("restore", "latest", "--yes", shop.name, "--json", url=shop.url)
        newest = run.json["result"]["previous_database"]
        ages.append(age(shop, newest, back) if back else newest)
    replace(shop, name="postgres").execute(f'CREATE DATABASE "{shop.name}__before_christmas"')
    return ages


def test_forget_previous(run_opsctl, shop, three_aside, databases_like):
    """``--forget-previous`` drops all of them, named, and nothing that only looks like one."""
    asked = run_opsctl("restore", "--forget-previous", url=shop.url)
    assert asked.returncode == 16
    assert all(name in asked.stderr for name in three_aside)
    run = run_opsctl("restore", "--forget-previous", "--yes", shop.name, "--json", url=shop.url)

    assert run.returncode == 0, run
    assert sorted(run.json["result"]["forgotten"]) == sorted(three_aside)
    assert databases_like(shop) == [shop.name, f"{shop.name}__before_christmas"]


def test_keep_previous(run_opsctl, shop, three_aside, databases_like):
    """``keep_previous = "1d"``: the next backup drops what was put aside longer ago, says so, and keeps the others."""
    configuration = run_opsctl.work / "opsctl.toml"
    configuration.write_text(f'[databases."{shop.name}"]\nurl = "{shop.url}"\n')
    assert run_opsctl("backup").returncode == 0
    assert len(previous_names(databases_like, shop)) == 4
    configuration.write_text(configuration.read_text() + 'keep_previous = "1d"\n')
    run = run_opsctl("backup")

    assert run.returncode == 0, run
    assert three_aside[0] in run.stdout
    assert three_aside[1] not in run.stdout
    assert databases_like(shop) == sorted([shop.name, f"{shop.name}__before_christmas", *three_aside[1:]])


# Leftovers


@pytest.mark.parametrize("command", [("backup",), ("restore", "latest", "--yes", "shop")], ids=lambda c: c[0])
def test_leftovers_go_with_the_next_run(run_opsctl, database, databases_like, command):
    """Staging databases of interrupted restores go, even with a session in them; never somebody else's database."""
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.shop]\nurl = "{database.url}"\n')
    assert run_opsctl("backup").returncode == 0
    admin = replace(database, name="postgres")
    leftovers = [f"{database.name}__opsctl_0123abcd", f"{database.name}__opsctl_ffffffff"]
    others = [
        f"{database.name}__opsctl_mine",
        f"{database.name}__opsctl_0123abcde",
        f"{database.name}__opsctl_0123ABCD",
        f"{database.name}2__opsctl_0123abcd",
        f"{database.name}__before_20200101T000000Z",
    ]
    for name in leftovers + others:
        admin.execute(f'CREATE DATABASE "{name}"')
    with replace(database, name=leftovers[0]).connect() as session:
        session.execute("SELECT 1")
        run = run_opsctl(*command)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")

    assert run.returncode == 0, run
    left = databases_like(database)
    assert set(others) < set(left)
    assert not set(leftovers) & set(left)
