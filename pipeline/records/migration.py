"""Databases of another MLflow: one that misses a table is upgraded unasked, and who made it is locked out."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

__all__ = ["of_another_version"]


def of_another_version(file: Path) -> bool:
    """Whether the installed MLflow would change the SQLite database `file` for good by opening it. Imports MLflow."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.model_registry import sqlalchemy_store as _registry  # noqa: F401 - declares its tables
    from mlflow.store.tracking import sqlalchemy_store as _tracking  # noqa: F401 - declares its tables

    with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    return bool(tables) and not tables.issuperset(Base.metadata.tables)
