"""Layers and layouts: the same bytes for the same files, whole or not there, and read by other programs' tools."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from image_releases import PRINT_PEAK, document, noise, peak_mb, publish, to_layout

from stages.errors import InputError, StageError
from stages.image.contents import Release, parts
from stages.image.documents import MANIFEST, Descriptor, described
from stages.image.layer import build_layer
from stages.image.layer_cache import LayerCache
from stages.image.layout import REF_NAME, Layout
from stages.image.tar import file, folders_above, safe_name, symlink, text, write_tar


def _tar(entries: list) -> bytes:
    out = io.BytesIO()
    write_tar(entries, out.write, 7)
    return out.getvalue()


def test_tar_is_sorted_and_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(noise(1000))
    entries = [symlink("z", "b"), file("b", tmp_path / "b"), text("a/c", b"x"), *folders_above(["a/c"])]
    with tarfile.open(fileobj=io.BytesIO(_tar(entries))) as found:
        members = found.getmembers()
        assert [(one.name, one.mode, one.mtime, one.uid, one.gid, one.uname) for one in members] == [
            ("a", 0o755, 7, 0, 0, ""),
            ("a/c", 0o644, 7, 0, 0, ""),
            ("b", 0o644, 7, 0, 0, ""),
            ("z", 0o777, 7, 0, 0, ""),
        ]
        assert found.extractfile("b").read() == noise(1000)
        assert found.getmember("z").linkname == "b"


def test_long_names_and_other_alphabets_survive(tmp_path: Path) -> None:
    name = "/".join(["ordner" * 10] * 5) + "/größe-模型.bin"
    with tarfile.open(fileobj=io.BytesIO(_tar([text(name, b"x")]))) as found:
        assert found.getnames() == [name]


def test_a_size_beyond_ustar_is_written(tmp_path: Path) -> None:
    """9 GiB does not fit in the octal field of ustar: the header says it in a PAX record."""
    from stages.image.tar import Entry, _header

    entry = Entry("big", 0o644, tmp_path / "absent", 9 << 30)
    header = tarfile.TarInfo.frombuf(_header(entry, 0)[-512:], "utf-8", "strict")
    assert header.name == "big"
    assert b"size=9663676416\n" in _header(entry, 0)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a//b", "", ".", "a\\b", "a\nb", "\udc80", ".wh.x", "a/.wh..wh..opq"]
)
def test_names_that_would_leave_or_delete_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a file in an image"):
        safe_name(name)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_layer_is_what_its_digests_say(tmp_path: Path, compression: str) -> None:
    import zstandard

    source = tmp_path / "weights"
    source.write_bytes(noise(3_000_000))
    layer = build_layer([file("w", source)], tmp_path / "blobs", compression=compression)
    content = (tmp_path / "blobs" / layer.descriptor.digest[7:]).read_bytes()
    assert layer.descriptor.size == len(content)
    assert layer.descriptor.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    tar = zstandard.ZstdDecompressor().decompressobj().decompress(content) if compression == "zstd" else content
    assert layer.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(tar)) as found:
        assert found.extractfile("w").read() == noise(3_000_000)


def test_a_file_that_changes_meanwhile_makes_no_layer(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"12345")
    entry = file("w", source)
    source.write_bytes(b"123456")
    with pytest.raises(StageError, match="changed while it was read"):
        build_layer([entry], tmp_path / "blobs")
    assert list((tmp_path / "blobs").iterdir()) == []


def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    """The peak of a process that packs 300 MB (a sparse file) is that of one that packs nothing, and some buffers."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from stages.image.layer import build_layer; from stages.image.tar import file\n"
        "source = Path(sys.argv[1]); source.touch(); os.truncate(source, int(sys.argv[2]))\n"
        "build_layer([file('w', source)], source.parent / 'blobs', compression='zstd')\n"
        f"{PRINT_PEAK}"
    )
    peaks = [peak_mb(program, tmp_path / "w", size) for size in (1, 300_000_000)]
    assert peaks[1] - peaks[0] < 16


def test_two_builds_elsewhere_and_later_are_one_image(tmp_path: Path) -> None:
    files = {"model.onnx": noise(300_000), "assets/vocab.bin": noise(6000, 1)}
    first = to_layout(publish(tmp_path / "one" / "repository", files), tmp_path / "a")
    time.sleep(1.1)
    release = publish(tmp_path / "other" / "folder" / "repository", files)
    for path in sorted(release.path.rglob("*")):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second = to_layout(release, tmp_path / "b")
    assert first.digest == second.digest
    assert (tmp_path / "a" / "index.json").read_bytes() == (tmp_path / "b" / "index.json").read_bytes()
    assert to_layout(release, tmp_path / "c", source_date_epoch=1).digest != first.digest


def test_versions_share_the_layers_of_what_they_have_in_common(tmp_path: Path) -> None:
    files = {"model.onnx": noise(300_000), "assets/vocab.bin": noise(6000, 1), "labels.txt": b"a\nb\n"}
    first = to_layout(publish(tmp_path / "repository", files), tmp_path / "out")
    second = to_layout(publish(tmp_path / "repository", files, batch=16), tmp_path / "out")
    layers = [[layer["digest"] for layer in image.layers] for image in (first, second)]
    assert layers[0][:2] == layers[1][:2]
    assert layers[0][2] != layers[1][2]
    assert second.layers[2]["size_bytes"] < 1000
    assert first.tag.endswith(":v1") and second.tag.endswith(":v2")


def test_layers_together_are_the_release(tmp_path: Path, release: Release) -> None:
    built = to_layout(release, tmp_path / "out")
    root = _unpack(tmp_path / "out", built.digest, tmp_path / "root")
    home = root / "models" / "m"
    for name, digest in release.files.items():
        assert hashlib.sha256((home / "1" / name).read_bytes()).hexdigest() == digest
    assert (home / "config.pbtxt").read_bytes() == (release.path / "config.pbtxt").read_bytes()
    assert not list(root.rglob("provenance.json"))
    assert (home / "1" / "model.onnx").readlink() == Path("../.blobs") / release.files["model.onnx"]


def test_onnxruntime_takes_external_data_through_the_links(tmp_path: Path) -> None:
    """It refuses data that lies below no folder of the graph, as it is named or as it really lies."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, ["b", 4])], [helper.make_tensor_value_info("y", 1, ["b", 4])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = tmp_path / "made"
    made.mkdir()
    onnx.save(model, made / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    release = publish(tmp_path / "repository", {path.name: path.read_bytes() for path in made.iterdir()})
    root = _unpack(tmp_path / "out", to_layout(release, tmp_path / "out").digest, tmp_path / "root")
    graph_file = root / "models" / "m" / "1" / "model.onnx"
    assert graph_file.is_symlink() and graph_file.with_name("model.onnx.data").is_symlink()
    (answer,) = onnxruntime.InferenceSession(graph_file).run(None, {"x": np.eye(4, dtype=np.float32)})
    np.testing.assert_allclose(answer, weights, rtol=1e-6)


def test_the_layer_cache_knows_what_it_has_seen(tmp_path: Path, release: Release) -> None:
    cache = LayerCache(tmp_path / "cache")
    weights, *_, last = parts(release, 100_000)
    layer = build_layer(weights.entries, tmp_path / "blobs")
    assert cache.find(weights.entries, "none", 0) is None
    cache.remember(weights.entries, "none", 0, layer)
    assert cache.find(weights.entries, "none", 0) == layer
    assert cache.find(weights.entries, "none", 1) is None
    assert cache.find(weights.entries, "zstd", 0) is None
    assert cache.find(last.entries, "none", 0) is None
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text("{")
    assert cache.find(weights.entries, "none", 0) is None
    assert LayerCache(None).find(weights.entries, "none", 0) is None


def test_a_release_of_many_files_has_few_layers(tmp_path: Path) -> None:
    files = {f"shard-{number}.bin": noise(2000 + number, number) for number in range(80)}
    release = publish(tmp_path / "repository", {"model.onnx": noise(500), **files})
    found = parts(release, 1500)
    assert len(found) == 66  # 63 of one file, one of the rest, other files, the version
    assert len({entry.sha256 for part in found for entry in part.entries if "/.blobs/" in entry.name}) == 81


def test_a_full_disk_leaves_nothing_half_made(small_disk: Path, tmp_path: Path) -> None:
    release = publish(tmp_path / "repository", {"model.onnx": noise(6_000_000)})
    with pytest.raises(StageError, match="no space is left") as refused:
        to_layout(release, small_disk / "out")
    assert "Nothing was tagged" in str(refused.value)
    assert Layout(small_disk / "out").names() == []
    assert list((small_disk / "out" / "blobs" / "sha256").iterdir()) == []


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(noise(2_000_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(StageError, match="no space is left"):
            build_layer([file("w", source)], tmp_path / "blobs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_link_in_a_release_is_refused(tmp_path: Path, release: Release) -> None:
    from stages.image.contents import read_release

    (release.path / "extra").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="extra is a link"):
        read_release(tmp_path / "repository", "m")


def test_a_name_in_the_list_of_a_release_may_not_lead_out(tmp_path: Path, release: Release) -> None:
    from stages.image.contents import read_release

    listed = release.path / "provenance.json"
    listed.write_text(listed.read_text().replace('"labels.txt"', '"../../../../etc/hostname"'))
    with pytest.raises(InputError, match="lead out"):
        read_release(tmp_path / "repository", "m")


def test_a_file_that_nobody_published_is_refused(tmp_path: Path, release: Release) -> None:
    from stages.image.contents import read_release

    (release.path / "stranger.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"stranger\.bin is no part of the release"):
        read_release(tmp_path / "repository", "m")


def test_a_changed_weight_is_refused(tmp_path: Path, release: Release) -> None:
    from model_repository import RepositoryError
    from stages.image.contents import read_release

    (release.path / "model.onnx").write_bytes(noise(300_000, 9))
    with pytest.raises(RepositoryError, match="has changed since it was published"):
        read_release(tmp_path / "repository", "m")


def test_a_layout_says_what_it_holds(tmp_path: Path, release: Release) -> None:
    to_layout(release, tmp_path / "out")
    with pytest.raises(InputError, match=r"no image 'v9'; there are: v1"):
        Layout(tmp_path / "out").resolve("v9")
    with pytest.raises(InputError, match="there is no OCI layout"):
        Layout(tmp_path / "absent").resolve(None)
    with pytest.raises(InputError, match="is no OCI layout"):
        to_layout(release, tmp_path / "repository")


def test_a_damaged_blob_is_not_handed_on(tmp_path: Path, release: Release) -> None:
    built = to_layout(release, tmp_path / "out")
    layout = Layout(tmp_path / "out")
    layer = document(tmp_path / "out", built.digest)["layers"][0]
    path = layout.blobs / layer["digest"][7:]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StageError, match="is damaged"):
        layout.read(Descriptor.read(layer, "here"))


def _unpack(layout: Path, digest: str, root: Path) -> Path:
    """Extract the layers of an image on top of each other, as an engine does."""
    import zstandard

    for layer in document(layout, digest)["layers"]:
        content = (Layout(layout).blobs / layer["digest"][7:]).read_bytes()
        if layer["mediaType"].endswith("zstd"):
            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.extractall(root, filter="data")
    return root


def test_many_writers_lose_no_name(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out").create()

    def tag(number: int) -> None:
        about, content = described({"number": number}, MANIFEST)
        Layout(layout.path).tag(about, content, f"v{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tag, range(40)))
    assert {item.annotations[REF_NAME] for item in layout.names()} == {f"v{number}" for number in range(40)}
