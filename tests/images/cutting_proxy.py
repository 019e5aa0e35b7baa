"""Stands between us and a real registry, and cuts connections when so many bytes have gone to it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self


class CuttingProxy:
    """A TCP proxy on the loopback. `after`: the bytes after which the connections that carry so many are cut, each
    once. `cuts` counts them."""

    def __init__(self, target: str, after: list[int]) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._after = list(after)
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                server.sendall(piece)
                carried += len(piece)
                if self._after and carried >= self._after[0]:
                    self._after.pop(0)
                    self.cuts += 1
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    break
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # or the other thread, which reads from it, would keep it open
        server.close()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(1 << 16):
                client.sendall(piece)
            client.close()
