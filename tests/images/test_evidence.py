"""Bill of materials, provenance and signature: what they say, and that nothing which does not fit them is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_registry import FaultyRegistry
from image_releases import QUICK, document, noise, publish, push, to_layout

from stages.errors import InputError, RequirementError, StageError
from stages.image.build import Built
from stages.image.contents import Release
from stages.image.documents import Descriptor, described
from stages.image.evidence import PROVENANCE, SBOM, SIGNATURE, attach, attached
from stages.image.layout import Layout
from stages.image.reference import parse_reference
from stages.image.registry import RegistryRepository
from stages.image.verify import verify_image

Keys = tuple[Path, Path]


@pytest.fixture
def signed(release: Release, tmp_path: Path, keys: Keys) -> Built:
    pytest.importorskip(
        "model_signing", reason="model-signing is not installed: pip install 'optimize-pipeline[signing]'"
    )
    return to_layout(release, tmp_path / "out", sign_key=keys[0])


def _evidence(layout: Path, built: Built) -> dict[str, Any]:
    subject = Layout(layout).resolve(built.digest)[0]
    return {
        kind: json.loads(content) for kind, content in attached(Layout(layout), subject, (SBOM, PROVENANCE, SIGNATURE))
    }


def test_provenance_is_about_the_image_and_its_run(release: Release, tmp_path: Path) -> None:
    built = to_layout(release, tmp_path / "out")
    statement = _evidence(tmp_path / "out", built)[PROVENANCE]
    assert statement["subject"] == [{"name": "m-model", "digest": {"sha256": built.digest[7:]}}]
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = statement["predicate"]
    assert predicate["runDetails"]["metadata"]["invocationId"] == "f" * 32
    dependencies = {
        item["name"]: item["digest"]["sha256"] for item in predicate["buildDefinition"]["resolvedDependencies"]
    }
    assert dependencies == {
        "release": release.digest, "source checkpoint": "cd" * 32, "evaluation evaluation.jsonl": "ab" * 32,
    }  # fmt: skip
    text = json.dumps(statement)
    assert "secret" not in text and "/home/somebody" not in text
    assert "https://mlflow.example/" in text


def test_the_bill_of_materials_is_valid_and_names_everything(release: Release, tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    built = to_layout(release, tmp_path / "out")
    bill = _evidence(tmp_path / "out", built)[SBOM]
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))
    assert problem is None, problem
    kinds = {item["type"]: item for item in bill["components"]}
    assert set(kinds) == {"machine-learning-model", "data", "library"}
    assert kinds["library"]["purl"] == "pkg:pypi/onnxruntime@1.31.1"
    assert {item["name"] for item in kinds["machine-learning-model"]["components"]} == set(release.files)
    assert bill["metadata"]["component"]["hashes"][0]["content"] == built.digest[7:]


def test_evidence_is_the_same_in_another_process(release: Release, tmp_path: Path) -> None:
    to_layout(release, tmp_path / "out")
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from image_releases import to_layout; from stages.image.contents import read_release\n"
        "to_layout(read_release(Path(sys.argv[2]), 'm'), Path(sys.argv[3]))"
    )
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", program, here, str(tmp_path / "repository"), str(tmp_path / "again")]
    subprocess.run(words, check=True, env={"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"})
    assert (tmp_path / "out" / "index.json").read_bytes() == (tmp_path / "again" / "index.json").read_bytes()


def test_a_release_without_any_provenance_has_evidence_too(tmp_path: Path, release: Release) -> None:
    bare = Release("m", 1, release.path, release.files, release.digest, {})
    found = _evidence(tmp_path / "out", to_layout(bare, tmp_path / "out"))
    assert set(found) == {PROVENANCE, SBOM}


@pytest.mark.parametrize("api", [False, True], ids=["by tag", "by the API"])
def test_evidence_in_a_registry_is_found_again(release: Release, api: bool) -> None:
    with FaultyRegistry(referrers_api=api) as registry:
        built = push(release, registry.host)
        push(release, registry.host)  # the same evidence again is no second piece of evidence
        with RegistryRepository(registry.host, "m", QUICK) as repository:
            subject = repository.resolve(built.digest)[0]
            kinds = [kind for kind, _ in attached(repository, subject, (SBOM, PROVENANCE))]
        assert sorted(kinds) == sorted([SBOM, PROVENANCE])
        assert (("m", built.digest.replace(":", "-")) in registry.manifests) == (not api)


def test_a_signed_image_is_verified(signed: Built, tmp_path: Path, keys: Keys) -> None:
    verified = verify_image(parse_reference(signed.tag), keys[1])
    assert verified.digest == signed.digest
    assert verified.sbom
    assert verified.size_bytes == signed.size_bytes
    assert verified.provenance["buildDefinition"]["externalParameters"]["model"] == "m"


def test_a_signed_image_in_a_registry_is_verified_by_digest(
    registry: FaultyRegistry, release: Release, keys: Keys
) -> None:
    built = push(release, registry.host, sign_key=keys[0])
    assert verify_image(parse_reference(built.reference), keys[1], QUICK).digest == built.digest


def test_another_key_is_refused(signed: Built, other_keys: Keys) -> None:
    with pytest.raises(StageError, match="is refused: no signature is right for"):
        verify_image(parse_reference(signed.tag), other_keys[1])


def test_an_image_without_a_signature_is_refused(release: Release, tmp_path: Path, keys: Keys) -> None:
    built = to_layout(release, tmp_path / "out")
    with pytest.raises(StageError, match="is not signed"):
        verify_image(parse_reference(built.tag), keys[1])


def test_one_right_signature_among_others_is_enough(
    signed: Built, release: Release, tmp_path: Path, keys: Keys, other_keys: Keys
) -> None:
    to_layout(release, tmp_path / "out", sign_key=other_keys[0])
    for public in (keys[1], other_keys[1]):
        assert verify_image(parse_reference(signed.tag), public).digest == signed.digest


def _blob_of(layout: Path, built: Built, which: str) -> Path:
    subject = Layout(layout).resolve(built.digest)[0]
    if which in (SBOM, PROVENANCE, SIGNATURE):
        listed = next(item for item in Layout(layout).referrers(subject) if item.artifact_type == which)
        digest = document(layout, listed.digest)["layers"][0]["digest"]
    else:
        image = document(layout, built.digest)
        digest = {"layer": image["layers"][0]["digest"], "config": image["config"]["digest"], "manifest": built.digest}[
            which
        ]
    return Layout(layout).blobs / digest[7:]


@pytest.mark.parametrize("which", ["layer", "config", "manifest", SBOM, PROVENANCE, SIGNATURE])
def test_a_changed_byte_anywhere_is_refused(signed: Built, tmp_path: Path, keys: Keys, which: str) -> None:
    path = _blob_of(tmp_path / "out", signed, which)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError, match="is damaged"):
        verify_image(parse_reference(signed.tag), keys[1])


def test_a_layer_that_is_missing_is_refused(signed: Built, tmp_path: Path, keys: Keys) -> None:
    _blob_of(tmp_path / "out", signed, "layer").unlink()
    with pytest.raises(StageError, match="has no blob"):
        verify_image(parse_reference(signed.tag), keys[1])


def _forge(layout: Path, built: Built, change: Callable[[dict[str, bytes]], dict[str, bytes]], key: Path) -> None:
    """Replace an image's signature by one over other files."""
    from stages.image.evidence import sign

    subject, manifest = Layout(layout).resolve(built.digest)
    evidence = dict(attached(Layout(layout), subject, (SBOM, PROVENANCE)))
    files = change({"manifest.json": manifest, "provenance.json": evidence[PROVENANCE], "sbom.json": evidence[SBOM]})
    for content in files.values():
        attach(Layout(layout), subject, PROVENANCE, content)
    attach(Layout(layout), subject, SIGNATURE, sign(files, key))


def test_the_signature_of_another_image_is_refused(tmp_path: Path, keys: Keys, signed: Built) -> None:
    """Its owner signed it, but it is about something else: it is hung on this image by somebody who has no key."""
    other = publish(tmp_path / "other" / "repository", {"model.onnx": noise(200_000, 5)})
    stranger = to_layout(other, tmp_path / "stranger")
    bundle = _blob_of(tmp_path / "out", signed, SIGNATURE).read_bytes()
    subject = Layout(tmp_path / "stranger").resolve(stranger.digest)[0]
    attach(Layout(tmp_path / "stranger"), subject, SIGNATURE, bundle)
    with pytest.raises(StageError, match=r"which is not there"):
        verify_image(parse_reference(stranger.tag), keys[1])
    for kind in (PROVENANCE, SBOM):  # even with all that it covers beside it
        content = _blob_of(tmp_path / "out", signed, kind).read_bytes()
        attach(Layout(tmp_path / "stranger"), subject, kind, content)
    manifest = Layout(tmp_path / "out").resolve(signed.digest)[1]
    attach(Layout(tmp_path / "stranger"), subject, SBOM, manifest)
    with pytest.raises(StageError, match="it is about another image"):
        verify_image(parse_reference(stranger.tag), keys[1])


def test_a_signature_without_provenance_is_refused(release: Release, tmp_path: Path, keys: Keys) -> None:
    built = to_layout(release, tmp_path / "out")
    _forge(tmp_path / "out", built, lambda files: {"manifest.json": files["manifest.json"]}, keys[0])
    with pytest.raises(StageError, match="covers no provenance"):
        verify_image(parse_reference(built.tag), keys[1])


def test_a_provenance_of_another_image_is_refused(release: Release, tmp_path: Path, keys: Keys) -> None:
    built = to_layout(release, tmp_path / "out")

    def other(files: dict[str, bytes]) -> dict[str, bytes]:
        return {**files, "provenance.json": files["provenance.json"].replace(built.digest[7:].encode(), b"0" * 64)}

    _forge(tmp_path / "out", built, other, keys[0])
    with pytest.raises(StageError, match="its provenance is about sha256:0000"):
        verify_image(parse_reference(built.tag), keys[1])


def test_a_tampered_layer_in_a_registry_is_refused(registry: FaultyRegistry, release: Release, keys: Keys) -> None:
    built = push(release, registry.host, sign_key=keys[0])
    digest = built.layers[0]["digest"]
    registry.blobs["m", digest] = registry.blobs["m", digest][:-1] + b"x"
    with pytest.raises(StageError, match="it was not used"):
        verify_image(parse_reference(built.tag), keys[1], QUICK)


def test_what_is_no_image_and_what_is_no_key(release: Release, tmp_path: Path, keys: Keys) -> None:
    built = to_layout(release, tmp_path / "out")
    with pytest.raises(InputError, match="there is no key"):
        verify_image(parse_reference(built.tag), tmp_path / "absent")
    with pytest.raises(InputError, match="cannot sign"):
        to_layout(release, tmp_path / "out", sign_key=keys[1])
    with pytest.raises(InputError, match="there is no key"):
        to_layout(release, tmp_path / "out", sign_key=tmp_path / "absent")
    with pytest.raises(InputError, match="without evidence cannot be signed"):
        to_layout(release, tmp_path / "out", sign_key=keys[0], evidence=False)


def test_a_key_that_cannot_sign_tags_nothing(release: Release, tmp_path: Path, keys: Keys) -> None:
    with pytest.raises(InputError):
        to_layout(release, tmp_path / "out", sign_key=keys[1])
    assert not [item for item in Layout(tmp_path / "out").names() if item.artifact_type is None]


def test_the_tool_of_model_signing_verifies_what_we_sign(signed: Built, tmp_path: Path, keys: Keys) -> None:
    subject, manifest = Layout(tmp_path / "out").resolve(signed.digest)
    evidence = dict(attached(Layout(tmp_path / "out"), subject, (SBOM, PROVENANCE, SIGNATURE)))
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "provenance.json").write_bytes(evidence[PROVENANCE])
    (folder / "sbom.json").write_bytes(evidence[SBOM])
    (tmp_path / "bundle").write_bytes(evidence[SIGNATURE])
    words = [
        "-m",
        "model_signing",
        "verify",
        "key",
        str(folder),
        "--signature",
        str(tmp_path / "bundle"),
        "--public_key",
        str(keys[1]),
    ]
    said = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


def test_cosign_is_asked_for_only_where_it_is(signed: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stages.image.evidence.cosign import cosign_sign

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequirementError, match="cosign is not on the PATH"):
        cosign_sign(parse_reference(signed.reference), "key")


def test_a_damaged_list_of_images_is_told(signed: Built, tmp_path: Path, keys: Keys) -> None:
    index = tmp_path / "out" / "index.json"
    index.write_text(index.read_text().replace("sha256:", "md5:"))
    with pytest.raises(StageError, match="not of a SHA-256 blob"):
        verify_image(parse_reference(signed.tag), keys[1])


def test_descriptors_are_read_strictly() -> None:
    for given in (
        None,
        {},
        {"mediaType": "x", "digest": "sha256:1", "size": 1},
        {"mediaType": "x", "digest": "sha256:" + "a" * 64, "size": -1},
    ):
        with pytest.raises(StageError):
            Descriptor.read(given, "here")


def test_evidence_that_is_none_is_not_read_into_memory(release: Release, tmp_path: Path, keys: Keys) -> None:
    """Somebody who may push can attach anything."""
    built = to_layout(release, tmp_path / "out")
    layout = Layout(tmp_path / "out")
    subject = layout.resolve(built.digest)[0]
    listed = attach(layout, subject, SIGNATURE, b"{}")
    large = document(tmp_path / "out", listed.digest)
    large["layers"][0]["size"] = 40 << 30
    layout.refer(*_as(listed, large), subject)
    with pytest.raises(StageError, match="which is no document"):
        verify_image(parse_reference(built.tag), keys[1])


def _as(listed: Descriptor, changed: dict[str, Any]) -> tuple[Descriptor, bytes]:
    about, content = described(changed, listed.media_type)
    return replace(about, artifact_type=listed.artifact_type), content
