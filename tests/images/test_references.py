"""What images are called, and where credentials are found."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from stages.errors import InputError, RequirementError
from stages.image.reference import LayoutReference, RegistryReference, parse_reference
from stages.image.registry.credentials import Credentials, find_credentials

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("oci:out", LayoutReference(Path("out"))),
        ("oci:/a/b:c/out:v1", LayoutReference(Path("/a/b:c/out"), "v1")),
        (f"oci:out@{DIGEST}", LayoutReference(Path("out"), None, DIGEST)),
        ("localhost:5000/m", RegistryReference("localhost:5000", "m")),
        ("registry.example/team/m:v1", RegistryReference("registry.example", "team/m", "v1")),
        (f"[::1]:5000/m:v1@{DIGEST}", RegistryReference("[::1]:5000", "m", "v1", DIGEST)),
    ],
)
def test_references(text: str, meant: object) -> None:
    assert parse_reference(text) == meant
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "busybox", "library/busybox:1", "registry.example/M", "registry.example/m:", "registry.example/m@sha256:12",
     "registry.example/../m", "oci:", "https://registry.example/m", "registry.example/m:v1:v2"],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InputError):
        parse_reference(text)


def test_digest_and_tag_lead_to_the_same_place() -> None:
    reference = parse_reference("registry.example/m:v1")
    assert str(reference.at(DIGEST)) == f"registry.example/m@{DIGEST}"
    assert str(parse_reference(f"oci:out@{DIGEST}").tagged("v2")) == "oci:out:v2"


@pytest.mark.parametrize("key", ["registry.example", "https://registry.example", "https://registry.example/v2/"])
def test_credentials_are_found_under_the_keys_that_tools_write(tmp_path: Path, key: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {key: {"auth": base64.b64encode(b"ann:a:b").decode()}}}))
    assert find_credentials("registry.example", config) == Credentials("ann", "a:b")
    assert find_credentials("other.example", config) is None
    assert find_credentials("registry.example", tmp_path / "absent") is None
    assert find_credentials("registry.example", None) is None


def test_the_hub_has_an_old_name(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"username": "ann", "password": "p"}}}))
    assert find_credentials("docker.io", config) == Credentials("ann", "p")


@pytest.mark.parametrize("content", ["{", '{"auths": 3}', '{"auths": {"registry.example": {"auth": "%"}}}', "[]"])
def test_a_damaged_file_is_told(tmp_path: Path, content: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(content)
    with pytest.raises(InputError, match="is not a file of registry credentials"):
        find_credentials("registry.example", config)


def test_passwords_are_not_printed() -> None:
    assert "secret" not in repr(Credentials("ann", "secret", "secret"))


def _helper(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = folder / "docker-credential-test"
    program.write_text(f"#!/bin/sh\nread host\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    config = folder / "config.json"
    config.write_text(json.dumps({"credHelpers": {"registry.example": "test"}, "credsStore": "absent"}))
    return config


def test_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _helper(tmp_path, 'echo "{\\"Username\\": \\"$host\\", \\"Secret\\": \\"$1\\"}"', monkeypatch)
    assert find_credentials("registry.example", config) == Credentials("registry.example", "get")


def test_a_helper_may_give_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _helper(tmp_path, 'echo \'{"Username": "<token>", "Secret": "t"}\'', monkeypatch)
    assert find_credentials("registry.example", config) == Credentials(identity_token="t")


def test_a_helper_that_knows_nothing_is_no_error_and_one_that_fails_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _helper(tmp_path, "echo 'credentials not found in native keychain'; exit 1", monkeypatch)
    assert find_credentials("registry.example", config) is None
    _helper(tmp_path, "echo locked >&2; exit 1", monkeypatch)
    with pytest.raises(RequirementError, match=r"failed for registry\.example: locked"):
        find_credentials("registry.example", config)
    with pytest.raises(RequirementError, match=r"docker-credential-absent.* is not on the PATH"):
        find_credentials("other.example", config)
