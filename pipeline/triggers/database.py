"""The SQLite file that queue, cursor and inbox share: `<store>/triggers/triggers.db`.

What is committed is on the disk (`synchronous=FULL`), and any number of processes may work on it (WAL).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from stages.errors import InputError

__all__ = ["connect", "transaction"]

_FORMAT = 1
_SCHEMA = """
create table work (
    seq integer primary key autoincrement, key text not null unique, registry text not null, model text not null,
    version integer not null, why text not null, recipe_name text not null, recipe text not null,
    state text not null, attempts integer not null default 0, not_before real not null default 0,
    asked_at real not null, changed_at real not null, seconds real, exit_code integer,
    message text not null default '', variant text, release text, registered text
);
create index work_state on work (state, not_before, seq);
create table cursor (
    registry text not null, model text not null, created_ms integer not null, version integer not null,
    aliases text not null, primary key (registry, model)
);
create table delivery (
    id text primary key, received real not null, event text not null, model text, version integer, alias text,
    handled integer not null default 0, relays text not null default '[]', tries integer not null default 0,
    next_try real not null default 0
);
create index delivery_open on delivery (handled, received);
"""


def connect(folder: Path) -> sqlite3.Connection:
    """A connection to the file in `folder`, which is made if it is not there, for its owner alone.

    Raises `InputError` if another version of this program made the file.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / "triggers.db"
    file.touch(mode=0o600)
    connection = sqlite3.connect(file, timeout=30, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    with transaction(connection):
        found = connection.execute("pragma user_version").fetchone()[0]
        if found == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"pragma user_version = {_FORMAT}")
    if found not in (0, _FORMAT):
        connection.close()
        raise InputError(f"{file} was made by another version of optimize (format {found}); move it away to start anew")
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that no other writer is beside; inside another one, a part of it."""
    if connection.in_transaction:
        yield
        return
    connection.execute("begin immediate")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")
