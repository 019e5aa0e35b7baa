"""Makes a layer in one pass: tar, its digest, compression, the digest of that, and the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from stages.image.documents import LAYER_TAR, LAYER_ZSTD, Descriptor, Layer
from stages.image.incoming import Incoming, incoming
from stages.image.tar import Entry, write_tar

__all__ = ["ZSTD_LEVEL", "Compression", "build_layer", "store_tar"]

Compression = Literal["none", "zstd"]

ZSTD_LEVEL = 3
_BUFFER_BYTES = 1 << 20


def build_layer(entries: Sequence[Entry], blobs: Path, *, compression: Compression = "none", mtime_s: int = 0) -> Layer:
    """Write the layer of these entries into the folder `blobs`, under the SHA-256 of its bytes.

    Uncompressed, the tar's digest is the blob's, and one hash is computed instead of two. Memory does not grow with
    the layer. Raises `StageError` if it cannot be written (a full disk); nothing is left behind then.
    """
    with incoming(blobs) as out:
        sink = _Sink(out, compression)
        write_tar(entries, sink.write, mtime_s)
        return sink.finish(blobs)


def store_tar(tar: Path, blobs: Path, *, compression: Compression = "zstd") -> Layer:
    """The same for a tar that another program has made; its members are kept as they are."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with incoming(blobs) as out, tar.open("rb", buffering=0) as source:
        sink = _Sink(out, compression)
        while count := source.readinto(buffer):
            sink.write(buffer[:count])
        return sink.finish(blobs)


class _Sink:
    """Takes a tar in pieces: hashes it, compresses it, hashes that, and writes it."""

    def __init__(self, out: Incoming, compression: Compression) -> None:
        self._out = out
        self._tar = hashlib.sha256()
        self._blob = self._tar
        self._compressor: Any = None
        if compression == "zstd":
            import zstandard

            self._blob = hashlib.sha256()
            self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()

    def write(self, piece: bytes | memoryview) -> None:
        self._tar.update(piece)
        if self._compressor is None:
            self._out.write(piece)
        else:
            self._store(self._compressor.compress(piece))

    def finish(self, blobs: Path) -> Layer:
        if self._compressor is not None:
            self._store(self._compressor.flush())
        digest = self._blob.hexdigest()
        self._out.keep(blobs / digest)
        media_type = LAYER_TAR if self._compressor is None else LAYER_ZSTD
        return Layer(Descriptor(media_type, f"sha256:{digest}", self._out.size), f"sha256:{self._tar.hexdigest()}")

    def _store(self, piece: bytes) -> None:
        self._blob.update(piece)
        self._out.write(piece)
