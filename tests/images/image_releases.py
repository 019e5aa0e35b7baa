"""Releases to make images of, and what is asked of every image."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from model_repository import Repository
from stages.image.build import Built, build_images
from stages.image.contents import Release, read_release
from stages.image.layout import Layout
from stages.image.options import ImageOptions
from stages.image.reference import parse_reference
from stages.image.registry import Access, Retries

CONFIG = """
backend: "onnxruntime"
max_batch_size: %d
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
instance_group { count: 1 kind: KIND_CPU }
"""
PROVENANCE = {
    "job_id": "0123456789abcdef",
    "data": [{"name": "evaluation.jsonl", "role": "evaluation", "digest": "ab" * 32, "source": "/home/somebody/data"}],
    "libraries": {"onnxruntime": "1.31.1"},
    "mlflow": {"experiment": "optimize/m", "run_id": "f" * 32, "tracking_uri": "https://user:secret@mlflow.example/"},
    "source": {"digest": "cd" * 32, "reference": "/home/somebody/checkpoint"},
    "variant": {"name": "int8-dynamic"},
}
QUICK = Access(plain_http=True, retries=Retries(attempts=4, first_s=0.01, longest_s=0.02, patience_s=1))
"""Tries again soon, so that tests do not wait."""


PRINT_PEAK = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
"""Prints the largest resident set (kB) of a process. `ru_maxrss` would hold that of the process which started it."""


def peak_mb(program: str, *arguments: object) -> float:
    """The peak memory of a Python process that ends with `PRINT_PEAK`."""
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) / 1024


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def publish(repository: Path, files: dict[str, bytes], *, batch: int = 8, model: str = "m") -> Release:
    """Publish these files with a configuration, and read the release."""
    tree = repository.parent / f"tree-{batch}-{hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:8]}"
    for name, content in {"config.pbtxt": (CONFIG % batch).encode(), **files}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    published = Repository(repository).publish(model, tree, PROVENANCE)
    return read_release(repository, model, published.version)


def to_layout(release: Release, path: Path, **options: Any) -> Built:
    """Make the model image in a layout, without a base unless one is asked for."""
    given = ImageOptions(**{"model_base": "scratch", "weights_from_bytes": 100_000, **options})
    return build_images(release=release, to=parse_reference(f"oci:{path}"), options=given)[0]


def push(release: Release, host: str, name: str = "m", **options: Any) -> Built:
    """Make the model image in a registry."""
    extra = {key: options.pop(key) for key in ("layer_cache", "scratch", "access") if key in options}
    given = ImageOptions(**{"model_base": "scratch", "weights_from_bytes": 100_000, **options})
    to = parse_reference(f"{host}/{name}")
    return build_images(release=release, to=to, options=given, **{"access": QUICK, **extra})[0]


def document(layout: Path, digest: str) -> Any:
    """A JSON document in a layout."""
    return json.loads((Layout(layout).blobs / digest.removeprefix("sha256:")).read_bytes())
