"""The deliveries that came in: kept before they are answered, looked into by the watch, passed on by the relay.

A delivery says that something may have changed, and where. What has changed the registry itself is asked.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.triggers.database import transaction
from pipeline.triggers.signature import WINDOW_S
from pipeline.triggers.work import SUFFIX, is_alias, is_name

__all__ = ["Delivery", "Inbox", "read_delivery"]

_KEPT_S = 24 * 3600.0
"""How long a delivery's id is kept. After `WINDOW_S` its timestamp alone gives a replay away."""

assert _KEPT_S > 2 * WINDOW_S

_RELAYED = {"model_version.created", "model_version_alias.created"}


@dataclass(frozen=True)
class Delivery:
    """What is kept of a delivery. `model`, `version` and `alias` are null unless they are well-formed; the body's
    `source` is not kept, for nobody may use it."""

    id: str
    event: str
    model: str | None
    version: int | None
    alias: str | None

    @property
    def to_relay(self) -> bool:
        """Whether a continuous integration may want to know of it: not of our own results."""
        return self.event in _RELAYED and self.model is not None and not self.model.endswith(SUFFIX)


def read_delivery(identity: str, body: bytes) -> Delivery:
    """Read a body that MLflow has signed. Raises `ValueError` if it is not one of MLflow's."""
    try:
        content = json.loads(body)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise ValueError("no object with `entity`, `action` and `data`")
    entity, action = content.get("entity"), content.get("action")
    if not all(
        isinstance(word, str) and word.replace("_", "").isalpha() and len(word) < 64 for word in (entity, action)
    ):
        raise ValueError("`entity` and `action` are not words")
    data: dict[str, Any] = content["data"]
    name, version, alias = data.get("name"), str(data.get("version")), data.get("alias")
    return Delivery(
        id=identity,
        event=f"{entity}.{action}",
        model=name if isinstance(name, str) and is_name(name) else None,
        version=int(version) if version.isascii() and version.isdigit() and len(version) < 18 else None,
        alias=alias if isinstance(alias, str) and is_alias(alias) else None,
    )


class Inbox:
    """The deliveries in the file behind `connection`. Use one object in one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def keep(self, deliveries: Sequence[Delivery], relays: Sequence[str]) -> list[bool]:
        """Keep deliveries, all in one transaction: on the disk when this returns. Of each: whether it is new.

        `relays`: names of those that pass them on.
        """
        now = time.time()
        with transaction(self._connection):
            self._connection.execute(
                "delete from delivery where received < ? and handled = 1 and relays = '[]'", (now - _KEPT_S,)
            )
            return [
                self._connection.execute(
                    "insert into delivery (id, received, event, model, version, alias, handled, relays)"
                    " values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (id) do nothing",
                    (delivery.id, now, delivery.event, delivery.model, delivery.version, delivery.alias,
                     int(delivery.model is None), json.dumps(list(relays) if delivery.to_relay else [])),
                ).rowcount == 1
                for delivery in deliveries
            ]  # fmt: skip

    def open_hints(self) -> dict[str, str]:
        """The models that deliveries name which nobody has looked at since, by the delivery's id."""
        rows = self._connection.execute("select id, model from delivery where handled = 0 order by received")
        return {row["id"]: row["model"] for row in rows}

    def close_hints(self, identities: Iterable[str]) -> None:
        """Their models have been looked at."""
        with transaction(self._connection):
            self._connection.executemany(
                "update delivery set handled = 1 where id = ?", [(identity,) for identity in identities]
            )

    def to_relay(self) -> list[tuple[Delivery, list[str], int]]:
        """What is to be passed on by now: the delivery, the relays it still has to go to, how often it was tried."""
        rows = self._connection.execute(
            "select * from delivery where relays != '[]' and next_try <= ? order by received limit 50", (time.time(),)
        )
        return [
            (
                Delivery(row["id"], row["event"], row["model"], row["version"], row["alias"]),
                json.loads(row["relays"]),
                row["tries"],
            )
            for row in rows
        ]

    def relayed(self, identity: str, left: Sequence[str], delay_s: float = 0.0) -> None:
        """Note which relays a delivery still has to go to, and when to try them again."""
        with transaction(self._connection):
            self._connection.execute(
                "update delivery set relays = ?, tries = tries + 1, next_try = ? where id = ?",
                (json.dumps(list(left)), time.time() + delay_s, identity),
            )
