"""The whole chain with real parts: our images, Debian's docker-registry, skopeo, podman with runc, a real Triton."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutting_proxy import CuttingProxy
from image_releases import PRINT_PEAK, QUICK, noise, peak_mb
from loopback import unused_ports
from workplace import Classifier

from model_repository import Repository
from model_repository.config import ConfigOptions, build, to_text
from stages.image.build import Built, build_images
from stages.image.containerfile import containerfile
from stages.image.contents import Release, read_release
from stages.image.documents import Descriptor, digest_of
from stages.image.options import ImageOptions
from stages.image.reference import parse_reference
from stages.image.registry import RegistryRepository
from stages.image.verify import verify_image

CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:20000", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""What podman needs on a machine without CAP_SYS_RESOURCE, with cgroups of both versions."""

HARDENED = ["--network", "host", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges",
            "--shm-size", "256m"]  # fmt: skip


def needed(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            package = {"busybox": "busybox-static"}.get(program, program)
            pytest.skip(f"{program} is not on the PATH: apt install --no-install-recommends {package}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a docker-registry."""
    needed("docker-registry")
    path = tmp_path_factory.mktemp("registry")
    (port,) = unused_ports(1)
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(path / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    (path / "config.yml").write_text(json.dumps(config))
    with (path / "log").open("w") as log:
        running = subprocess.Popen(["docker-registry", "serve", str(path / "config.yml")], stdout=log, stderr=log)
        try:
            wait_for(lambda: fetch(f"http://127.0.0.1:{port}/v2/")[0] == 200, running)
            yield f"127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait()


@dataclass(frozen=True)
class Podman:
    """podman with storage of its own."""

    path: Path

    def __call__(self, *words: object, check: bool = True) -> str:
        command = ["podman", "--root", self.path / "root", "--runroot", self.path / "run", *words]
        environment = {**os.environ, "CONTAINERS_CONF": str(self.path / "containers.conf"), "TMPDIR": str(self.path)}
        said = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
        assert not check or said.returncode == 0, said.stderr
        return said.stdout + said.stderr


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    needed("podman", "runc")
    if os.geteuid() != 0:
        pytest.skip("podman is tried as root here; rootless podman was not")
    path = tmp_path_factory.mktemp("podman")
    (path / "containers.conf").write_text(CONTAINERS)
    found = Podman(path)
    yield found
    found("rm", "--all", "--force", check=False)
    found("rmi", "--all", "--force", check=False)
    for mount in ("root/overlay", "root"):
        subprocess.run(["umount", str(path / mount)], capture_output=True)


@pytest.fixture(scope="module")
def digits(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The trained classifier. Its requests wait for others up to 8 s, so that some can be under way at any moment."""
    from stages.runtime.onnxruntime import signature_of

    path = tmp_path_factory.mktemp("digits")
    tree = path / "tree"
    tree.mkdir()
    shutil.copy(classifier.model, tree / "model.onnx")
    options = ConfigOptions(max_batch_size=64, max_queue_delay_us=8_000_000, threads=1)
    (tree / "config.pbtxt").write_text(to_text(build("digits", signature_of(tree / "model.onnx"), options)))
    Repository(path / "repository").publish("digits", tree, {})
    return read_release(path / "repository", "digits")


@pytest.fixture(scope="module")
def images(store: str, digits: Release) -> dict[str, Built]:
    """Both images of the classifier, in the registry."""
    needed("mmdebstrap", "busybox")
    import platformdirs

    from model_repository.environment import server_environment
    from stages.image.local_base import local_base

    cache = platformdirs.user_cache_path("optimize") / "images"
    base = local_base(server_environment(), cache, lambda note: None)
    options = ImageOptions(kinds=("model", "serving"), serving_base=str(base), weights_from_bytes=4096)
    built = build_images(release=digits, to=parse_reference(f"{store}/digits"), options=options, access=QUICK)
    return {one.kind: one for one in built}


def test_the_registry_and_skopeo_agree_on_the_digest(images: dict[str, Built]) -> None:
    needed("skopeo")
    for built in images.values():
        words = ["skopeo", "inspect", "--tls-verify=false", f"docker://{built.tag}"]
        said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        assert said["Digest"] == built.digest
        assert said["Layers"] == [layer["digest"] for layer in built.layers]


def test_an_upload_to_a_real_registry_survives_cut_connections(store: str) -> None:
    """This registry (2.8) throws away an upload that was cut in the middle of a piece, and is asked for a new one."""
    content = noise(6_000_000)
    blob = Descriptor("application/octet-stream", digest_of(content), len(content))
    with CuttingProxy(store, after=[900_000, 1_500_000, 2_500_000]) as proxy:
        with RegistryRepository(proxy.host, "cut", replace(QUICK, chunk_bytes=2_000_000)) as repository:
            repository.put(blob, content)
        assert proxy.cuts == 3
    with RegistryRepository(store, "cut", QUICK) as repository:
        assert repository.read(blob) == content


def test_a_real_registry_mounts_layers_and_keeps_evidence(
    store: str, digits: Release, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    pytest.importorskip(
        "model_signing", reason="model-signing is not installed: pip install 'optimize-pipeline[signing]'"
    )
    options = ImageOptions(model_base="scratch", weights_from_bytes=4096, sign_key=keys[0], mount_from=("one",))
    for name in ("one", "team/other"):
        (built,) = build_images(
            release=digits, to=parse_reference(f"{store}/{name}:v1"), options=options, access=QUICK,
            layer_cache=tmp_path / "cache",
        )  # fmt: skip
        assert verify_image(parse_reference(built.reference), keys[1], QUICK).digest == built.digest
    assert {layer["how"] for layer in built.layers} == {"mounted"}


def test_memory_does_not_grow_with_what_is_pushed_and_pulled(store: str, tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from stages.image.documents import Descriptor; from stages.image.layer import build_layer\n"
        "from stages.image.registry import Access, RegistryRepository; from stages.image.tar import file\n"
        "folder = Path(sys.argv[1]); folder.mkdir(); (folder / 'w').touch()\n"
        "os.truncate(folder / 'w', int(sys.argv[3]))\n"
        "blob = build_layer([file('w', folder / 'w')], folder / 'out').descriptor\n"
        "with RegistryRepository(sys.argv[2], 'large', Access(plain_http=True)) as repository:\n"
        "    repository.put(blob, folder / 'out' / blob.digest[7:])\n"
        "    assert repository.pull(blob, folder / 'in').stat().st_size == blob.size\n"
        f"{PRINT_PEAK}"
    )
    peaks = [peak_mb(program, tmp_path / str(size), store, size) for size in (1, 200_000_000)]
    assert peaks[1] - peaks[0] < 16


def test_a_release_is_served_read_only_without_rights_and_loses_no_request(
    podman: Podman, images: dict[str, Built], classifier: Classifier
) -> None:
    import onnxruntime

    built = images["serving"]
    ports = unused_ports(3)
    command = [with_port(word, dict(zip(built.ports.values(), ports, strict=True))) for word in built.command]
    podman("pull", "--quiet", "--tls-verify=false", built.reference)
    name = podman("run", "--detach", *HARDENED, built.reference, *command).strip()
    address = f"http://127.0.0.1:{ports[0]}"
    wait_for(lambda: fetch(f"{address}/v2/health/ready")[0] == 200)

    status = podman("exec", name, "cat", "/proc/1/status")
    assert "Uid:\t1000\t1000" in status and "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    assert "Read-only file system" in podman("exec", name, "touch", "/models/x", check=False)
    assert fetch(f"{address}/v2/repository/models/digits/unload", b"{}")[0] >= 400  # nobody unloads it from outside
    assert fetch(f"{address}/v2/health/ready")[0] == 200

    with np.load(classifier.evaluation) as arrays:
        samples = arrays["x"][:12]
    (right,) = onnxruntime.InferenceSession(classifier.model).run(None, {"x": samples})
    with ThreadPoolExecutor(len(samples)) as pool:
        asked = [pool.submit(infer, address, sample) for sample in samples]
        metrics = f"http://127.0.0.1:{ports[2]}/metrics"
        pending = 'nv_inference_pending_request_count{model="digits",version="1"} 12'
        wait_for(lambda: pending in fetch(metrics)[1])
        podman("stop", "--time", "40", name)
        answers = [one.result() for one in asked]
    np.testing.assert_allclose(np.concatenate(answers), right, rtol=1e-4, atol=1e-5)
    assert podman("inspect", name, "--format", "{{.State.ExitCode}}").strip() == "0"


def test_a_model_image_holds_the_release_and_a_shell(podman: Podman, images: dict[str, Built], digits: Release) -> None:
    """KServe's modelcar runs a shell in it, as the user of the server."""
    podman("pull", "--quiet", "--tls-verify=false", images["model"].reference)
    script = "id -u; cd /models/digits && ln -sf /proc/$$/root/models /tmp/models && ls /tmp/models && sha256sum 1/*"
    said = podman("run", "--rm", *HARDENED, images["model"].reference, "sh", "-c", script)
    lines = said.splitlines()
    assert lines[:2] == ["1000", "digits"]
    found = {name.removeprefix("1/"): digest for digest, name in (line.split() for line in lines[2:])}
    assert found == dict(digits.files)


def test_a_containerfile_makes_an_image_with_the_same_files(
    podman: Podman, images: dict[str, Built], digits: Release, tmp_path: Path
) -> None:
    needed("buildah")
    (tmp_path / "Containerfile").write_text(containerfile(digits, "model", images["model"].reference))
    podman("build", "--tls-verify=false", "--isolation", "chroot", "--tag", "by-hand", "--file",
           tmp_path / "Containerfile", digits.path.parents[1])  # fmt: skip
    said = podman("run", "--rm", *HARDENED, "by-hand", "sha256sum", "/models/digits/1/model.onnx")
    assert said.split()[0] == digits.files["model.onnx"]


def infer(address: str, sample: Any) -> Any:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": sample.tolist()}]}
    status, said = fetch(f"{address}/v2/models/digits/infer", json.dumps(body).encode())
    assert status == 200, said
    (output,) = json.loads(said)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def fetch(url: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and text; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_for(holds: Any, process: subprocess.Popen[Any] | None = None) -> None:
    for _ in range(3000):
        if holds():
            return
        assert process is None or process.poll() is None
        time.sleep(0.1)
    raise AssertionError("it did not come to pass in five minutes")


def with_port(word: str, ports: dict[int, int]) -> str:
    option, _, value = word.partition("=")
    return f"{option}={ports[int(value)]}" if option.endswith("-port") else word
