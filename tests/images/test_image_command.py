"""`optimize image` as people use it: what it prints, its exit codes, the Containerfile."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_registry import Fault, FaultyRegistry
from image_releases import noise, publish
from workplace import Workplace

from stages.image.containerfile import containerfile
from stages.image.contents import Release
from stages.image.layout import Layout
from stages.image.server import server_command


@pytest.fixture
def published(workplace: Workplace) -> Release:
    return publish(workplace.repository, {"model.onnx": noise(300_000), "labels.txt": b"a\n"})


def test_an_image_is_made_signed_and_verified(
    workplace: Workplace, published: Release, keys: tuple[Path, Path]
) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    ended = workplace.optimize(
        "image", workplace.repository, "m@1", "--to", "oci:out", "--model-base", "scratch", "--sign-key", keys[0],
        "--containerfile", "Containerfile", "--cache", "cache", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (built,) = ended.json
    assert built["reference"] == f"oci:out@{built['digest']}"
    assert built["tag"] == "oci:out:v1"
    assert "FROM scratch" in (workplace.path / "Containerfile").read_text()
    verified = workplace.optimize("image", "verify", built["reference"], "--key", keys[1], "--json")
    assert verified.code == 0, verified.err
    assert verified.json["digest"] == built["digest"]
    for blob in (workplace.path / "out" / "blobs" / "sha256").iterdir():
        if blob.stat().st_size > 100_000:
            blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    refused = workplace.optimize("image", "verify", "oci:out:v1", "--key", keys[1])
    assert refused.code == 4
    assert "is damaged" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["m", "--to", "out"], 2, "write oci:DIR, or registry/name:tag"),
        (["absent", "--to", "oci:out"], 2, "there is no model 'absent'"),
        (["m@9", "--to", "oci:out"], 2, "there is no version 9"),
        (["m@x", "--to", "oci:out"], 2, "is the number of a version"),
        (["m"], 2, "Missing option '--to'"),
        (["m", "--to", "oci:out", "--platform", "windows"], 2, "is no platform"),
        (["m", "--to", "oci:out", "--model-base", "busybox", "--platform", "linux/arm64"], 2, "is for linux/amd64"),
        (["m", "--to", "oci:out", "--cosign-key", "k", "--model-base", "scratch"], 5, "cosign is not on the PATH"),
    ],
)
def test_mistakes_are_told_with_their_exit_codes(
    workplace: Workplace, published: Release, arguments: list[str], code: int, says: str
) -> None:
    if "busybox" in arguments and not Path("/bin/busybox").exists():
        pytest.skip("there is no /bin/busybox: apt install busybox-static")
    ended = workplace.optimize("image", workplace.repository, *arguments, "--cache", "cache")
    assert (ended.code, says in ended.err) == (code, True), ended.err
    assert "Traceback" not in ended.err


def test_a_refused_login_is_the_users_affair_and_a_failing_registry_is_not(
    workplace: Workplace, published: Release
) -> None:
    words = ["image", workplace.repository, "m", "--model-base", "scratch", "--plain-http", "--cache", "cache"]
    with FaultyRegistry(login=("ann", "secret")) as registry:
        (workplace.path / "empty.json").write_text("{}")
        ended = workplace.optimize(*words, "--registry-config", "empty.json", "--to", f"{registry.host}/m")
        assert (ended.code, "Log in" in ended.err) == (2, True), ended.err
    with FaultyRegistry() as registry:
        registry.faults.append(Fault("HEAD", "", status=429, headers={"Retry-After": "9999"}))
        ended = workplace.optimize(*words, "--to", f"{registry.host}/m")
        assert (ended.code, "left alone for 9999 s" in ended.err) == (4, True), ended.err
        ended = workplace.optimize(*words, "--to", f"{registry.host}/m:stable", "--json")
        assert ended.json[0]["tag"] == f"{registry.host}/m:stable"
        assert registry.tags("m") == ["stable"]


def test_a_push_that_is_killed_has_tagged_nothing(workplace: Workplace, published: Release) -> None:
    with FaultyRegistry() as registry:
        registry.faults.append(Fault("PUT", "/manifests/", times=99, status=503, headers={"Retry-After": "60"}))
        words = ["image", workplace.repository, "m", "--model-base", "scratch", "--plain-http", "--cache", "cache"]
        running = workplace.start(*words, "--to", f"{registry.host}/m")
        while not registry.asked("PUT", "/manifests/"):
            assert running.poll() is None
            time.sleep(0.05)
        running.terminate()
        running.communicate()
        assert registry.tags("m") == []


def test_help_is_quick_and_complete(workplace: Workplace) -> None:
    program = (
        "import sys; sys.argv = ['optimize', 'image', 'build', '--help']\nimport pipeline.cli\n"
        "try:\n    pipeline.cli.main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('httpx', 'numpy', 'zstandard', 'pydantic', 'cyclonedx') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert "--plain-http" in ended.stdout
    assert "verify" in workplace.optimize("image", "--help").out


def test_a_containerfile_says_what_our_images_hold(published: Release) -> None:
    lines = containerfile(published, "serving", "base@sha256:1").splitlines()
    copied = [line for line in lines if line.startswith("COPY")]
    assert "model.onnx" in copied[0]  # the largest first
    assert len(copied) == len(published.files) + 1
    assert lines[2] == "FROM base@sha256:1"
    assert "USER 1000:1000" in lines
    assert all(word in lines[-1] for word in server_command())


def test_nothing_of_ours_is_left_in_a_layout(workplace: Workplace, published: Release) -> None:
    for _ in range(2):
        words = ["image", workplace.repository, "m", "--to", "oci:out", "--model-base", "scratch", "--cache", "cache"]
        assert workplace.optimize(*words).code == 0
    assert sorted(path.name for path in (workplace.path / "out").iterdir()) == ["blobs", "index.json", "oci-layout"]
    layout = Layout(workplace.path / "out")
    assert all(len(path.name) == 64 for path in layout.blobs.iterdir())
