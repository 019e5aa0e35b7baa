"""What images are built upon: bases for the right platform, as they are, by digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from faulty_registry import FaultyRegistry
from image_releases import QUICK, document, push, to_layout

from stages.errors import InputError, RequirementError, StageError
from stages.image.base import busybox_entries
from stages.image.build import build_images
from stages.image.contents import Release
from stages.image.documents import CONFIG, LAYER_TAR, Descriptor, Layer, described, index, manifest
from stages.image.layer import build_layer
from stages.image.layout import Layout
from stages.image.options import ImageOptions
from stages.image.reference import parse_reference
from stages.image.tar import text


def make_base(path: Path, architecture: str = "amd64", tag: str = "base", **settings: Any) -> tuple[Descriptor, bytes]:
    """An image of one file in a layout."""
    layout = Layout(path).create()
    layer = build_layer([text("etc-base", b"base\n")], layout.blobs)
    return store_image(layout, architecture, tag, layer, settings)


def store_image(
    layout: Layout, architecture: str, tag: str, layer: Layer, settings: dict[str, Any]
) -> tuple[Descriptor, bytes]:
    config, content = described(
        {
            "architecture": architecture,
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            "history": [{"created_by": "a test"}],
        },
        CONFIG,
    )
    layout.put_content(config, content)
    image, written = manifest(config, [layer.descriptor], {})
    layout.tag(image, written, tag)
    return image, written


def serving(release: Release, out: Path, base: str, **options: Any) -> Any:
    given = ImageOptions(kinds=("serving",), serving_base=base, weights_from_bytes=100_000, **options)
    return build_images(release=release, to=parse_reference(f"oci:{out}"), options=given, access=QUICK)[0]


def test_a_serving_image_is_its_base_and_the_release(release: Release, tmp_path: Path) -> None:
    base, _ = make_base(tmp_path / "base", Env=["PATH=/opt", "ORT_DISABLE_TELEMETRY=0"], Entrypoint=["/entry"])
    built = serving(release, tmp_path / "out", f"oci:{tmp_path}/base")
    image = document(tmp_path / "out", built.digest)
    config = document(tmp_path / "out", image["config"]["digest"])
    assert built.layers[0]["name"] == "base, layer 1"
    assert len(config["rootfs"]["diff_ids"]) == len(image["layers"]) == len(config["history"])
    settings = config["config"]
    assert settings["Entrypoint"] == ["/entry"]
    assert settings["User"] == built.user == "1000:1000"
    assert settings["Env"] == ["PATH=/opt", "ORT_DISABLE_TELEMETRY=1"]
    assert settings["Cmd"] == list(built.command)
    assert "--model-control-mode=none" in settings["Cmd"]
    assert (
        set(settings["ExposedPorts"])
        == {f"{port}/tcp" for port in built.ports.values()}
        == {"8000/tcp", "8001/tcp", "8002/tcp"}
    )
    assert image["annotations"]["org.opencontainers.image.base.digest"] == base.digest
    assert str(tmp_path) not in json.dumps([image, config])


def test_both_images_share_the_layers_of_the_release(release: Release, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    options = ImageOptions(
        kinds=("model", "serving"),
        model_base="scratch",
        serving_base=f"oci:{tmp_path}/base",
        weights_from_bytes=100_000,
    )
    model, with_server = build_images(release=release, to=parse_reference(f"oci:{tmp_path}/out"), options=options)
    assert [layer["digest"] for layer in model.layers] == [layer["digest"] for layer in with_server.layers][1:]
    assert (model.tag[-3:], with_server.tag[-11:]) == (":v1", ":v1-serving")


def test_the_digest_of_an_image_does_not_depend_on_where_its_base_lies(release: Release, tmp_path: Path) -> None:
    make_base(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other" / "place")
    first = serving(release, tmp_path / "a", f"oci:{tmp_path}/one:base")
    assert serving(release, tmp_path / "b", f"oci:{tmp_path}/other/place:base").digest == first.digest


def test_a_base_of_another_architecture_is_refused(release: Release, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "arm64")
    with pytest.raises(InputError, match="is for linux/arm64, and the image is to be for linux/amd64"):
        serving(release, tmp_path / "out", f"oci:{tmp_path}/base")
    assert Layout(tmp_path / "out").names() == []
    assert serving(release, tmp_path / "out", f"oci:{tmp_path}/base", platform="linux/arm64").platform == "linux/arm64"


def _index_of(path: Path) -> dict[str, Descriptor]:
    """A layout with an index `multi` of an image for each of two architectures."""
    found = {}
    for architecture in ("amd64", "arm64"):
        image, _ = make_base(path, architecture, architecture)
        platform = {"os": "linux", "architecture": architecture}
        found[architecture] = Descriptor(image.media_type, image.digest, image.size, platform=platform)
    about, content = index(list(found.values()))
    Layout(path).tag(about, content, "multi")
    return found


def test_an_index_gives_the_image_of_the_platform(release: Release, tmp_path: Path) -> None:
    images = _index_of(tmp_path / "base")
    built = serving(release, tmp_path / "out", f"oci:{tmp_path}/base:multi", platform="linux/arm64")
    assert built.base == f"multi@{images['arm64'].digest}"
    with pytest.raises(InputError, match=r"no image for linux/s390x; it has: linux/amd64, linux/arm64"):
        serving(release, tmp_path / "out", f"oci:{tmp_path}/base:multi", platform="linux/s390x")


def test_a_base_in_a_registry_is_mounted_and_elsewhere_fetched(
    registry: FaultyRegistry, release: Release, tmp_path: Path
) -> None:
    """Docker's own types of documents are read, and become OCI's; the layers' bytes stay."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        out.addfile(tarfile.TarInfo("base-file"))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"]},
         "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"]}}
    ).encode()  # fmt: skip

    def entry(kind: str, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        registry.blobs["base", digest] = content
        return {"mediaType": f"application/vnd.docker.{kind}", "digest": digest, "size": len(content)}

    kind = "application/vnd.docker.distribution.manifest.v2+json"
    written = json.dumps(
        {"schemaVersion": 2, "mediaType": kind, "config": entry("container.image.v1+json", config),
         "layers": [entry("image.rootfs.diff.tar.gzip", layer)]}
    ).encode()  # fmt: skip
    digest = f"sha256:{hashlib.sha256(written).hexdigest()}"
    registry.manifests["base", "1.0"] = registry.manifests["base", digest] = (kind, written)

    pushed = push(release, registry.host, kinds=("serving",), serving_base=f"{registry.host}/base:1.0")
    assert pushed.layers[0]["how"] == "mounted"
    assert pushed.base == f"{registry.host}/base:1.0@{digest}"
    fetched = serving(release, tmp_path / "out", f"{registry.host}/base@{digest}")
    assert fetched.layers[0]["how"] == "fetched"
    image = document(tmp_path / "out", fetched.digest)
    assert image["layers"][0]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    with FaultyRegistry() as other:
        assert (
            push(release, other.host, kinds=("serving",), serving_base=f"{registry.host}/base:1.0").digest
            == pushed.digest
        )


def test_a_tampered_layer_of_a_base_is_not_handed_on(
    registry: FaultyRegistry, release: Release, tmp_path: Path
) -> None:
    _, written = make_base(tmp_path / "base")
    layer = Layout(tmp_path / "base").blobs / json.loads(written)["layers"][0]["digest"][7:]
    layer.write_bytes(layer.read_bytes().replace(b"base", b"evil"))
    for attempt in (
        lambda: serving(release, tmp_path / "out", f"oci:{tmp_path}/base"),
        lambda: push(release, registry.host, kinds=("serving",), serving_base=f"oci:{tmp_path}/base"),
    ):
        with pytest.raises(StageError, match="is damaged"):
            attempt()
    assert Layout(tmp_path / "out").names() == []
    assert registry.manifests == {} and registry.blobs == {}


def test_a_base_whose_documents_disagree_is_refused(release: Release, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base").create()
    layer = build_layer([text("x", b"x")], layout.blobs)
    config, content = described(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}, CONFIG
    )
    layout.put_content(config, content)
    layout.tag(*manifest(config, [layer.descriptor], {}), "base")
    with pytest.raises(StageError, match="it has 1 layers and the digests of 0"):
        serving(release, tmp_path / "out", f"oci:{tmp_path}/base")


def test_layers_that_may_not_be_handed_on_are_refused(release: Release, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base").create()
    layer = build_layer([text("x", b"x")], layout.blobs)
    foreign = Descriptor(
        LAYER_TAR.replace("layer.", "layer.nondistributable."), layer.descriptor.digest, layer.descriptor.size
    )
    store_image(layout, "amd64", "base", Layer(foreign, layer.diff_id), {})
    with pytest.raises(InputError, match="may not be handed on"):
        serving(release, tmp_path / "out", f"oci:{tmp_path}/base")


@pytest.mark.parametrize("base", ["scratch", "busybox"])
def test_a_serving_image_needs_a_server(release: Release, tmp_path: Path, base: str) -> None:
    with pytest.raises(InputError, match="has no server"):
        serving(release, tmp_path / "out", base)


def test_the_place_of_an_image_has_no_digest(release: Release, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its digest comes of its content"):
        build_images(release=release, to=parse_reference(f"oci:{tmp_path}/out@sha256:{'a' * 64}"))


def test_a_model_image_has_a_shell(release: Release, tmp_path: Path) -> None:
    if not Path("/bin/busybox").exists():
        pytest.skip("there is no /bin/busybox: apt install busybox-static")
    built = to_layout(release, tmp_path / "out", model_base="busybox")
    assert built.layers[0]["name"] == "busybox"
    config = document(tmp_path / "out", document(tmp_path / "out", built.digest)["config"]["digest"])
    assert config["config"]["User"] == "1000:1000"


def test_a_busybox_must_be_static_and_of_the_platform(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="busybox-static"):
        busybox_entries(tmp_path / "absent", "linux/amd64")
    with pytest.raises(RequirementError, match="is not a static program"):
        busybox_entries(Path("/bin/ls").resolve(), "linux/amd64")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(RequirementError, match="is not a static program"):
        busybox_entries(tmp_path / "script", "linux/amd64")
    elf = bytearray(64)
    elf[:6], elf[18] = b"\x7fELF\x02\x01", 183
    (tmp_path / "arm").write_bytes(elf)
    with pytest.raises(InputError, match=r"is for linux/arm64"):
        busybox_entries(tmp_path / "arm", "linux/amd64")


def test_a_modelpack_is_made_of_the_same_layers(release: Release, tmp_path: Path) -> None:
    built = to_layout(release, tmp_path / "out", modelpack=True)
    _, content = Layout(tmp_path / "out").resolve("v1-modelpack")
    pack = json.loads(content)
    assert pack["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert [layer["digest"] for layer in pack["layers"]] == [layer["digest"] for layer in built.layers]
    config = document(tmp_path / "out", pack["config"]["digest"])
    assert config["descriptor"]["name"] == "m"
    assert len(config["modelfs"]["diffIds"]) == len(pack["layers"])


def test_a_base_that_cannot_be_reached_says_what_else_there_is(release: Release, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"the base 127\.0\.0\.1:9/triton:1 cannot be had: .* ConnectError .*--base local"
    ):
        serving(release, tmp_path / "out", "127.0.0.1:9/triton:1")
