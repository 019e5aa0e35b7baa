"""Ports for programs that cannot choose one themselves."""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["unused_ports"]


def unused_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at.

    They are below those that the kernel gives to whoever asks for any: until the program has started, no connection of
    another process gets one of them.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(20_000, first if first > 21_000 else 60_000)
    found: list[int] = []
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        if len(found) == count:
            return found
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    raise AssertionError("all ports are taken")
