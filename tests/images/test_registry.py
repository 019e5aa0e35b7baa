"""Pushing and pulling: what a good registry gets, and what happens when it is a bad one."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from faulty_registry import Fault, FaultyRegistry
from image_releases import QUICK, noise, publish, push, to_layout

from stages.errors import InputError, StageError
from stages.image.contents import Release
from stages.image.documents import Descriptor
from stages.image.registry import Access, RegistryRepository, Retries

SMALL_CHUNKS = replace(QUICK, chunk_bytes=64_000)


def _blob(content: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def test_an_image_arrives_whole_and_its_name_comes_last(registry: FaultyRegistry, release: Release) -> None:
    built = push(release, registry.host)
    assert built.reference == f"{registry.host}/m@{built.digest}"
    assert registry.manifests["m", "v1"] == registry.manifests["m", built.digest]
    for digest, content in ((d, c) for (_, d), c in registry.blobs.items()):
        assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert registry.requests[-1] == ("PUT", "/v2/m/manifests/v1")
    assert built.sent_bytes == registry.received


def test_layout_and_registry_get_the_same_image(registry: FaultyRegistry, release: Release, tmp_path: Path) -> None:
    assert push(release, registry.host).digest == to_layout(release, tmp_path / "out").digest


def test_unchanged_weights_are_not_sent_again(registry: FaultyRegistry, tmp_path: Path) -> None:
    files = {"model.onnx": noise(3_000_000), "assets/vocab.bin": noise(60_000, 1)}
    first = push(publish(tmp_path / "repository", files), registry.host, layer_cache=tmp_path / "cache")
    second = push(publish(tmp_path / "repository", files, batch=16), registry.host, layer_cache=tmp_path / "cache")
    assert first.sent_bytes > 3_000_000
    assert second.sent_bytes < 10_000
    assert [layer["how"] for layer in second.layers] == ["there", "there", "made"]


def test_weights_are_mounted_from_another_repository(
    registry: FaultyRegistry, release: Release, tmp_path: Path
) -> None:
    push(release, registry.host, layer_cache=tmp_path / "cache")
    other = push(release, registry.host, "team/m", layer_cache=tmp_path / "cache", mount_from=("absent", "m"))
    assert {layer["how"] for layer in other.layers} == {"mounted"}
    assert registry.uploads == {}  # what `absent` opened instead was called off


def test_a_large_blob_goes_in_pieces(registry: FaultyRegistry) -> None:
    content = noise(200_000)
    with RegistryRepository(registry.host, "m", SMALL_CHUNKS) as repository:
        repository.put(_blob(content), content)
    assert registry.asked("PATCH") == 4
    assert registry.blobs["m", _blob(content).digest] == content


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_smallest_blobs_arrive(registry: FaultyRegistry, size: int) -> None:
    content = noise(size)
    with RegistryRepository(registry.host, "m", QUICK) as repository:
        repository.put(_blob(content), content)
        assert repository.read(_blob(content)) == content


def test_an_upload_goes_on_where_it_was_cut_off(registry: FaultyRegistry) -> None:
    content = noise(200_000)
    registry.faults += [Fault("PATCH", "", skip=1, drop_after=10_000), Fault("PATCH", "", skip=1, drop_after=0)]
    with RegistryRepository(registry.host, "m", SMALL_CHUNKS) as repository:
        repository.put(_blob(content), content)
    assert registry.blobs["m", _blob(content).digest] == content
    assert registry.asked("POST") == 1  # one upload, which was resumed
    assert registry.asked("GET", "/uploads/") == 2


@pytest.mark.parametrize("status", [416, 429, 500, 502, 503, 504])
def test_a_piece_that_was_refused_is_sent_again(registry: FaultyRegistry, status: int) -> None:
    content = noise(200_000)
    registry.faults.append(Fault("PATCH", "", skip=1, status=status))
    with RegistryRepository(registry.host, "m", SMALL_CHUNKS) as repository:
        repository.put(_blob(content), content)
    assert registry.blobs["m", _blob(content).digest] == content


def test_a_lost_upload_starts_anew(registry: FaultyRegistry) -> None:
    content = noise(200_000)
    registry.faults.append(Fault("PATCH", "", skip=2, status=404))
    with RegistryRepository(registry.host, "m", SMALL_CHUNKS) as repository:
        repository.put(_blob(content), content)
    assert registry.blobs["m", _blob(content).digest] == content
    assert registry.asked("POST") == 2


def test_a_lost_answer_to_the_last_request_is_no_failure(registry: FaultyRegistry) -> None:
    """The registry has taken the blob in; only we do not know. The session is gone when we ask again."""
    content = noise(2000)
    cut = {"Content-Length": "9", "Connection": "close"}  # and no body
    registry.faults.append(Fault("PUT", "/uploads/", change=lambda headers: headers.update(cut)))
    with RegistryRepository(registry.host, "m", QUICK) as repository:
        repository.put(_blob(content), content)
    assert registry.asked("PUT") == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_keeps_failing_is_an_error_and_nothing_is_tagged(
    registry: FaultyRegistry, release: Release, status: int
) -> None:
    registry.faults.append(Fault("POST", "/uploads/", skip=1, times=99, status=status))
    with pytest.raises(StageError, match=rf"failed 4 times, the last time with: {status} .*\(TROUBLE as told\)"):
        push(release, registry.host)
    assert registry.tags("m") == []


def test_a_connection_that_is_always_cut_in_the_middle_of_a_blob_ends_in_an_error(
    registry: FaultyRegistry, release: Release
) -> None:
    registry.faults.append(Fault("PATCH", "", times=99, drop_after=0))
    with pytest.raises(StageError, match=r"upload of sha256:[0-9a-f]+ to .* failed 4 times"):
        push(release, registry.host)
    assert registry.blobs == {}
    assert registry.tags("m") == []


def test_a_registry_that_is_not_there(release: Release) -> None:
    with pytest.raises(StageError, match="failed 4 times, the last time with: ConnectError"):
        push(release, "127.0.0.1:9")


def test_the_pause_that_a_registry_asks_for_is_made(registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    ours, sleep = threading.get_ident(), time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: pauses.append(s) if threading.get_ident() == ours else sleep(s))
    registry.faults += [
        Fault("HEAD", "", status=429, headers={"Retry-After": "7"}),
        Fault("HEAD", "", status=503, headers={"Retry-After": formatdate(time.time() + 90, usegmt=True)}),
        Fault("HEAD", "", status=500),
    ]
    access = Access(plain_http=True, retries=Retries(attempts=5, first_s=1, longest_s=3, patience_s=100))
    with RegistryRepository(registry.host, "m", access) as repository:
        assert not repository.has(_blob(b"x"))
    assert pauses[0] == 7
    assert 10 < pauses[1] <= 90
    assert pauses[2] == 3


def test_a_pause_that_is_too_long_is_an_error(registry: FaultyRegistry) -> None:
    registry.faults.append(Fault("HEAD", "", status=429, headers={"Retry-After": "3600"}))
    with (
        RegistryRepository(registry.host, "m", QUICK) as repository,
        pytest.raises(StageError, match="asks to be left alone for 3600 s"),
    ):
        repository.has(_blob(b"x"))


@pytest.mark.parametrize("where", ["/uploads/", "/manifests/v1"])
def test_a_registry_that_says_another_digest_is_not_believed(
    registry: FaultyRegistry, release: Release, where: str
) -> None:
    other = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    registry.faults.append(Fault("PUT", where, change=lambda headers: headers.update(other)))
    with pytest.raises(StageError, match="sha256:0000"):
        push(release, registry.host)


def test_another_content_in_transit_is_refused_by_the_registry(
    registry: FaultyRegistry, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.image.registry import upload

    right = upload._Session._pieces
    monkeypatch.setattr(
        upload._Session, "_pieces", lambda *given: (bytes([piece[0] ^ 1]) + piece[1:] for piece in right(*given))
    )
    with pytest.raises(StageError, match="DIGEST_INVALID other content"):
        push(release, registry.host)
    assert registry.tags("m") == []


def test_a_full_disk_on_the_way_leaves_nothing(registry: FaultyRegistry, small_disk: Path, tmp_path: Path) -> None:
    release = publish(tmp_path / "repository", {"model.onnx": noise(6_000_000)})
    with pytest.raises(StageError, match="no space is left"):
        push(release, registry.host, scratch=small_disk)
    assert registry.blobs == {}
    assert registry.tags("m") == []
    assert list(small_disk.iterdir()) == []


# Pulling


def _filled(registry: FaultyRegistry, content: bytes) -> Descriptor:
    registry.blobs["m", _blob(content).digest] = content
    return _blob(content)


def test_a_pull_goes_on_where_it_was_cut_off(registry: FaultyRegistry, tmp_path: Path) -> None:
    content = noise(3_000_000)
    wanted = _filled(registry, content)
    registry.faults += [Fault("GET", "/blobs/", drop_after=1_200_000), Fault("GET", "/blobs/", status=503)]
    with RegistryRepository(registry.host, "m", QUICK) as repository:
        path = repository.pull(wanted, tmp_path)
    assert path.read_bytes() == content
    assert registry.asked("GET") == 3


def test_a_pull_from_a_registry_without_ranges_starts_over(registry: FaultyRegistry) -> None:
    content = noise(3_000_000)
    wanted = _filled(registry, content)
    registry.faults.append(Fault("GET", "/blobs/", drop_after=1_200_000))
    registry.ranges = False
    with RegistryRepository(registry.host, "m", QUICK) as repository:
        assert repository.read(wanted) == content


@pytest.mark.parametrize("change", [lambda body: b"x" + body[1:], lambda body: body + b"x"], ids=["other", "longer"])
def test_what_has_another_digest_is_not_kept(registry: FaultyRegistry, tmp_path: Path, change: object) -> None:
    wanted = _filled(registry, noise(5000))
    registry.faults.append(
        Fault("GET", "/blobs/", times=9, body=change, change=lambda h: h.pop("Content-Length", None))
    )
    with (
        RegistryRepository(registry.host, "m", QUICK) as repository,
        pytest.raises(StageError, match=r"it was not used|is larger than"),
    ):
        repository.pull(wanted, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_manifest_with_another_digest_is_not_used(registry: FaultyRegistry, release: Release) -> None:
    built = push(release, registry.host)
    media_type, content = registry.manifests["m", built.digest]
    registry.manifests["m", built.digest] = (media_type, content.replace(b"optimize", b"optimise"))
    with (
        RegistryRepository(registry.host, "m", QUICK) as repository,
        pytest.raises(StageError, match="it was not used"),
    ):
        repository.resolve(built.digest)


def test_an_answer_that_is_no_manifest_is_told(registry: FaultyRegistry, release: Release) -> None:
    push(release, registry.host)
    registry.manifests["m", "v1"] = ("text/html", b"<html>")
    with RegistryRepository(registry.host, "m", QUICK) as repository, pytest.raises(StageError, match="is not JSON"):
        repository.resolve("v1")


def test_an_endless_document_is_not_read_to_its_end(registry: FaultyRegistry, release: Release) -> None:
    push(release, registry.host)
    registry.manifests["m", "v1"] = ("application/json", b" " * 9_000_000)
    with RegistryRepository(registry.host, "m", QUICK) as repository, pytest.raises(StageError, match="no document"):
        repository.resolve("v1")


# Who we are


def _config(path: Path, host: str, **entry: str) -> Path:
    path.write_text(json.dumps({"auths": {host: entry}}))
    return path


def _auth(name: str, password: str) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize("token", [False, True], ids=["basic", "bearer"])
def test_we_log_in_with_what_the_file_says(release: Release, tmp_path: Path, token: bool) -> None:
    with FaultyRegistry(login=("ann", "pass:word"), token=token) as registry:
        config = _config(tmp_path / "config.json", registry.host, auth=_auth("ann", "pass:word"))
        access = replace(QUICK, config=config, chunk_bytes=64_000)
        built = push(release, registry.host, access=access)
        assert registry.tags("m") == ["v1"]
        other = push(release, registry.host, "n", access=access, layer_cache=tmp_path / "c")
        mounted = push(release, registry.host, "o", access=access, layer_cache=tmp_path / "c", mount_from=("m",))
        assert {layer["how"] for layer in mounted.layers} == {"mounted"}
        assert built.digest == other.digest


def test_a_token_that_runs_out_in_a_long_upload_is_renewed(tmp_path: Path) -> None:
    with FaultyRegistry(login=("ann", "secret"), token=True) as registry:
        config = _config(tmp_path / "config.json", registry.host, auth=_auth("ann", "secret"))
        content = noise(200_000)
        with RegistryRepository(registry.host, "m", replace(SMALL_CHUNKS, config=config)) as repository:
            registry.faults.append(
                Fault("PATCH", "", skip=2, status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{registry.host}/token",service="test"'})
            )  # fmt: skip
            repository.put(_blob(content), content)
        assert registry.blobs["m", _blob(content).digest] == content
        assert len(registry.tokens) >= 2


def test_an_identity_token_is_traded_for_one_of_the_registry(release: Release, tmp_path: Path) -> None:
    with FaultyRegistry(login=("ann", "secret"), token=True) as registry:
        config = _config(tmp_path / "config.json", registry.host, identitytoken="secret")
        push(release, registry.host, access=replace(QUICK, config=config))
        assert registry.tags("m") == ["v1"]


@pytest.mark.parametrize("token", [False, True], ids=["basic", "bearer"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "wrong password"])
def test_a_refusal_says_what_to_do(release: Release, tmp_path: Path, token: bool, known: bool) -> None:
    with FaultyRegistry(login=("ann", "secret"), token=token) as registry:
        config = _config(tmp_path / "config.json", registry.host, auth=_auth("ann", "wr0ng")) if known else None
        with pytest.raises(InputError, match=r"401 Unauthorized.*Log in") as refused:
            push(release, registry.host, access=replace(QUICK, config=config))
        assert "wr0ng" not in str(refused.value)
        assert ("as 'ann'" if known else "without credentials") in str(refused.value)
        assert registry.blobs == {} and registry.manifests == {}


def test_a_token_is_not_asked_for_in_clear_text_over_a_registry_with_tls() -> None:
    from stages.image.registry.transport import Transport

    with (
        Transport("registry.example", Access()) as transport,
        pytest.raises(InputError, match="is not https; nothing was sent there"),
    ):
        transport._token({"realm": "http://elsewhere.example/token"}, ("repository:m:pull",))


def test_nobody_else_is_told_who_we_are(tmp_path: Path) -> None:
    """A registry may send us elsewhere for a blob: there we go without credentials."""
    content = noise(5000)
    with FaultyRegistry(login=("ann", "secret")) as registry, FaultyRegistry() as store:
        store.blobs["m", _blob(content).digest] = content
        place = f"http://{store.host}/v2/m/blobs/{_blob(content).digest}"
        config = _config(tmp_path / "config.json", registry.host, auth=_auth("ann", "secret"))
        with RegistryRepository(registry.host, "m", replace(QUICK, config=config)) as repository:
            assert not repository.has(_blob(b"x"))
            registry.faults.append(Fault("GET", "/blobs/", status=307, headers={"Location": place}))
            assert repository.read(_blob(content)) == content
        assert registry.authorizations[-1] is not None
        assert store.authorizations == [None]


def test_tls_is_the_default(registry: FaultyRegistry) -> None:
    access = replace(QUICK, plain_http=False)
    with (
        RegistryRepository(registry.host, "m", access) as repository,
        pytest.raises(StageError, match=r"https://.* failed 4 times"),
    ):
        repository.has(_blob(b"x"))
    assert registry.requests == []
