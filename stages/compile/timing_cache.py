"""Timing caches: how fast TensorRT found each tactic, kept so that the next build need not measure it again.

One file for each TensorRT version, compute capability and name of the device: a cache of others would be refused.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from stages.gpu import Gpu

__all__ = ["cache_file", "default_folder", "load", "save"]


def default_folder() -> Path:
    """Where timing caches are kept unless another place is named: the user's cache directory."""
    import platformdirs

    return platformdirs.user_cache_path("optimize") / "tensorrt"


def cache_file(folder: Path, version: str, gpu: Gpu) -> Path:
    """The file for a TensorRT version on this GPU."""
    device = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-").lower()
    return folder / f"{version}-sm{gpu.sm[0]}{gpu.sm[1]}-{device}.cache"


def load(file: Path) -> bytes:
    """What was kept; nothing where there is nothing yet."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def save(file: Path, content: bytes) -> None:
    """Keep `content`: the whole of it or, if that is cut off, what was there before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
        stream.write(content)
    Path(stream.name).replace(file)
