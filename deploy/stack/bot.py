"""The example's bot: every few seconds it asks the API who there is, and writes down that it did."""

import os
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import psycopg

ALIVE = Path("/tmp/alive")


def work() -> None:
    with urlopen(f"{os.environ['API_URL']}/users", timeout=5) as answer:
        what = f"greeted {answer.read().decode().count('user')} users"
    with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3, application_name="bot") as connection:
        connection.execute("insert into events (what) values (%s)", [what])


if __name__ == "__main__":
    while True:
        try:
            work()
            ALIVE.touch()
        except (OSError, psycopg.Error) as error:
            print(f"not now: {error}", file=sys.stderr)
        time.sleep(3)
