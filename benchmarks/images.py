"""What container images cost: speed and memory of making a layer, and what a new release of the same weights sends.

    python benchmarks/images.py [--size-mb 150] [--rounds 5] [--layer-gb 4]

Layer building is timed in turns with SHA-256 alone and with `buildah` (from scratch, copy, commit, uncompressed), on a
file of random bytes that lies in the page cache; nothing is flushed to the disk. The memory is the peak of a process
that makes one large layer of a sparse file. What is sent goes to a `docker-registry` on the loopback. What is not
installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from model_repository import Repository
from stages.image.build import build_images
from stages.image.contents import read_release
from stages.image.layer import build_layer
from stages.image.options import ImageOptions
from stages.image.reference import parse_reference
from stages.image.registry import Access
from stages.image.tar import file

MEMORY = """
import sys
from pathlib import Path
from stages.image.layer import build_layer
from stages.image.tar import file
build_layer([file("weights", Path(sys.argv[1]))], Path(sys.argv[2]))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
CONFIG = """
backend: "onnxruntime"
max_batch_size: %d
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
"""
PROVENANCE = {
    "job_id": "0123456789abcdef",
    "data": [{"name": f"{role}.jsonl", "role": role, "digest": "ab" * 32} for role in ("evaluation", "calibration")],
    "libraries": dict.fromkeys(("mlflow", "numpy", "onnx", "onnxruntime", "openvino", "torch"), "1.2.3"),
    "mlflow": {"experiment": "optimize/m", "run_id": "f" * 32, "tracking_uri": "https://mlflow.example/"},
    "source": {"digest": "cd" * 32, "reference": "checkpoint"},
    "variant": {"name": "int8-dynamic"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layer-gb", type=float, default=4)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        speed(Path(name), given.size_mb * 1_000_000, given.rounds)
    with tempfile.TemporaryDirectory() as name:
        memory(Path(name), int(given.layer_gb * 1e9))
    with tempfile.TemporaryDirectory() as name:
        sent(Path(name))


def speed(folder: Path, size: int, rounds: int) -> None:
    source = folder / "context" / "weights"
    source.parent.mkdir()
    with source.open("wb") as out:
        for _ in range(size // 1_000_000):
            out.write(os.urandom(1_000_000))

    def hashing() -> None:
        with source.open("rb") as stream:
            hashlib.file_digest(stream, "sha256").hexdigest()

    def layer(compression: str) -> None:
        build_layer([file("weights", source)], folder / compression, compression=compression)  # type: ignore[arg-type]

    def buildah() -> None:
        words = ["buildah", "--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "vfs"]
        run = lambda *rest: subprocess.run(  # noqa: E731
            [str(word) for word in (*words, *rest)], capture_output=True, text=True, check=True
        ).stdout.strip()
        container = run("from", "scratch")
        run("copy", container, source, "/weights")
        run("commit", "--timestamp", "0", "--disable-compression=true", container, f"oci:{folder / 'buildah'}:x")
        run("rm", container)

    ways: dict[str, Callable[[], None]] = {
        "SHA-256 alone": hashing,
        "layer, uncompressed": lambda: layer("none"),
        "layer, zstd": lambda: layer("zstd"),
    }
    if shutil.which("buildah"):
        ways["buildah"] = buildah
    else:
        print("buildah is not installed: left out")
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, do in ways.items():
            for old in (folder / "none", folder / "zstd", folder / "buildah"):
                shutil.rmtree(old, ignore_errors=True)
            started = time.perf_counter()
            do()
            taken[way].append(size / 1e6 / (time.perf_counter() - started))
    medians = {way: statistics.median(speeds) for way, speeds in taken.items()}
    for way, speeds in taken.items():
        print(f"{way:<20} {medians[way]:>7.0f} MB/s (from {min(speeds):.0f} to {max(speeds):.0f})")
    print(f"uncompressed layer / SHA-256 alone: {medians['layer, uncompressed'] / medians['SHA-256 alone']:.0%}")
    if "buildah" in medians:
        print(f"uncompressed layer / buildah: {medians['layer, uncompressed'] / medians['buildah']:.1f}x")


def memory(folder: Path, size: int) -> None:
    source = folder / "weights"
    source.touch()
    os.truncate(source, size)
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, str(source), str(folder / "blobs")], capture_output=True, text=True, check=True
    )
    print(f"peak memory for a layer of {size / 1e9:g} GB: {int(said.stdout) * 1024 / 1e6:.1f} MB")


def sent(folder: Path) -> None:
    if not shutil.which("docker-registry"):
        print("docker-registry is not installed: nothing is sent")
        return
    asked: dict[str, dict[str, Any]] = {
        "without evidence": {"evidence": False},
        "with bill and provenance": {},
        "with bill, provenance and signature": {"sign_key": new_key(folder / "signer.pem")},
    }
    if find_spec("model_signing") is None:
        print("model-signing is not installed: no signature")
        del asked["with bill, provenance and signature"]
    with registry(folder) as host:
        for number, (what, options) in enumerate(asked.items()):
            for version, batch in enumerate((8, 16), 1):
                tree = folder / f"tree-{number}-{version}"
                tree.mkdir()
                (tree / "config.pbtxt").write_text(CONFIG % batch)
                (tree / "tokenizer.json").write_bytes(b"token " * 100_000)
                (tree / "model.onnx").write_bytes(bytes(range(256)) * 400_000)
                repository = folder / f"repository-{number}"
                Repository(repository).publish("m", tree, PROVENANCE)
                (built,) = build_images(
                    release=read_release(repository, "m"),
                    to=parse_reference(f"{host}/m-{number}"),
                    options=ImageOptions(**options, model_base="scratch"),
                    access=Access(plain_http=True),
                    layer_cache=folder / "cache",
                    scratch=folder,
                )
                print(f"version {version} {what}: {built.sent_bytes} bytes sent, of an image of {built.size_bytes}")


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A docker-registry on the loopback that answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
              "http": {"addr": host}, "log": {"accesslog": {"disabled": True}}}  # fmt: skip
    (folder / "config.yml").write_text(json.dumps(config))
    words = ["docker-registry", "serve", str(folder / "config.yml")]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not answers(f"http://{host}/v2/"):
            if running.poll() is not None or time.monotonic() > until:
                raise SystemExit("docker-registry does not start")
            time.sleep(0.05)
        yield host
    finally:
        running.terminate()
        running.wait()


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def new_key(path: Path) -> Path:
    """A private key of P-256, for this run alone."""
    private = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    path.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return path


if __name__ == "__main__":
    main()
