"""Remembers which layer came of which files, so that unchanged weights are neither read nor packed again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

from stages.artifact import canonical_json
from stages.errors import StageError
from stages.image.documents import Descriptor, Layer
from stages.image.incoming import incoming
from stages.image.layer import ZSTD_LEVEL, Compression
from stages.image.tar import Entry

__all__ = ["LayerCache"]

_REVISION = 1
"""Raised when the same entries would give other bytes than before."""


class LayerCache:
    """A folder with one small file a layer: from its entries (the SHA-256 of each file among them) to its digest.

    It holds no layers. Where `folder` is None nothing is remembered.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, entries: Sequence[Entry], compression: Compression, mtime_s: int) -> Layer | None:
        """The layer that these entries gave before, if it is known."""
        path = self._path(entries, compression, mtime_s)
        if path is None:
            return None
        try:
            known = json.loads(path.read_bytes())
            return Layer(Descriptor.read(known["descriptor"], str(path)), known["diff_id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, StageError):
            path.unlink(missing_ok=True)  # damaged: it is made again, and costs a layer's time
            return None

    def remember(self, entries: Sequence[Entry], compression: Compression, mtime_s: int, layer: Layer) -> None:
        """Keep what these entries gave."""
        path = self._path(entries, compression, mtime_s)
        if path is None:
            return
        with incoming(path.parent) as out:
            out.write(canonical_json({"descriptor": layer.descriptor.json(), "diff_id": layer.diff_id}).encode())
            out.keep(path)

    def _path(self, entries: Sequence[Entry], compression: Compression, mtime_s: int) -> Path | None:
        if self._folder is None:
            return None
        members = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            if isinstance(entry.content, Path) and entry.sha256 is None:
                return None
            content = hashlib.sha256(entry.content).hexdigest() if isinstance(entry.content, bytes) else entry.sha256
            members.append([entry.name, entry.mode, entry.size, entry.target, content])
        packer: list[str] = [compression]
        if compression == "zstd":
            packer += [str(ZSTD_LEVEL), importlib.metadata.version("zstandard")]
        key = hashlib.sha256(canonical_json([_REVISION, packer, mtime_s, members]).encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.json"
