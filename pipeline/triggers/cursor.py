"""How far a registry has been read: of each model the last version seen, and where its aliases pointed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.triggers.database import transaction

__all__ = ["Cursor", "read_cursor", "write_cursor"]


@dataclass(frozen=True)
class Cursor:
    """`created_ms`: when the model was made; another one of the same name begins anew. `aliases`: alias → version."""

    created_ms: int
    version: int
    aliases: Mapping[str, int] = field(default_factory=dict)


def read_cursor(connection: sqlite3.Connection, registry: str, model: str) -> Cursor | None:
    """Where reading stopped; null for a model that was never read."""
    row = connection.execute("select * from cursor where registry = ? and model = ?", (registry, model)).fetchone()
    return None if row is None else Cursor(row["created_ms"], row["version"], json.loads(row["aliases"]))


def write_cursor(connection: sqlite3.Connection, registry: str, model: str, cursor: Cursor) -> None:
    """Move on. Do it in the transaction that queues what was read."""
    with transaction(connection):
        connection.execute(
            "insert or replace into cursor values (?, ?, ?, ?, ?)",
            (registry, model, cursor.created_ms, cursor.version, json.dumps(dict(cursor.aliases), sort_keys=True)),
        )
