"""The rows of a database in use, against a server: in no more time than was given, and waiting for nobody."""

from opsctl.postgres.live_rows import count_live
from opsctl.postgres.server import Server


def test_what_cannot_be_counted_in_time_is_unknown(database):
    """A locked table, and one that takes too long, are unknown; the others are counted all the same, partitions too.

    What is asked afterwards on the same connection has no such limit.
    """
    database.execute(
        """create table "Odd.name" as select generate_series(1, 3);
           create table locked as select 1;
           create table large as select generate_series(1, 1500000);
           create table parent (n int) partition by range (n);
           create table leaf partition of parent for values from (0) to (10);
           insert into parent values (1), (2);
           create view seen as select 1; create temp table mine as select 1"""
    )
    with database.connect() as holder, Server(database.url).connect() as connection:
        holder.execute("begin; lock table locked in access exclusive mode")
        rows = count_live(connection, table_seconds=0.005)
        limit = connection.execute("show statement_timeout").fetchone()
        nothing = count_live(connection, all_seconds=0)

    assert rows == {
        ("public", "Odd.name"): 3,
        ("public", "locked"): None,
        ("public", "large"): None,
        ("public", "leaf"): 2,
    }
    assert nothing == dict.fromkeys(rows)
    assert limit == ("0",)
