"""What an image is built upon: nothing, a static busybox, or an image from a layout or a registry."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.errors import InputError, RequirementError, StageError
from stages.image.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Layer, read_json
from stages.image.layout import Layout
from stages.image.place import Place
from stages.image.reference import LayoutReference, Reference
from stages.image.registry import RegistryRepository
from stages.image.tar import Entry, file, folder, symlink

__all__ = ["BUSYBOX", "Base", "busybox_entries", "ensure_platform", "read_base"]

BUSYBOX = Path("/bin/busybox")
_APPLETS = ("cat", "cp", "echo", "env", "find", "id", "ln", "ls", "mkdir", "mv", "rm", "sh", "sha256sum", "sleep",
            "stat", "tar", "test")  # fmt: skip
_MACHINES = {62: "amd64", 183: "arm64"}
_OCI_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_ELF_BYTES = 4096
_INTERPRETER = 3  # a program header that names the dynamic loader
_FOREIGN = ("foreign", "nondistributable")


@dataclass(frozen=True)
class Base:
    """An image to build upon. `settings` is its `config` (environment, entry point …), `history` its steps.

    `place` has the blobs of its layers; None where it has none.
    """

    layers: tuple[Layer, ...] = ()
    settings: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    digest: str | None = None
    place: Place | None = None

    @property
    def mountable(self) -> tuple[str, str] | None:
        """The registry and the repository that blobs can be mounted from."""
        return (self.place.host, self.place.name) if isinstance(self.place, RegistryRepository) else None

    def path(self, descriptor: Descriptor) -> Path | None:
        """Where a layer lies on this machine, if it does."""
        if isinstance(self.place, Layout) and self.place.has(descriptor):
            return self.place.blob(descriptor)
        return None


def read_base(place: Place, reference: Reference, platform: str) -> Base:
    """The image of a reference, for one platform (`linux/amd64`).

    Raises `InputError` if it has none for that platform and `StageError` if it is damaged.
    """
    descriptor, content = place.resolve(reference.digest or reference.tag)
    if descriptor.media_type in INDEX_TYPES:
        descriptor = _choose(descriptor, content, platform, str(reference))
        content = place.fetch_manifest(descriptor)
    if descriptor.media_type not in MANIFEST_TYPES:
        raise InputError(f"{reference} is no container image: its type is {descriptor.media_type!r}")
    document = read_json(content, str(reference))
    config = read_json(
        place.read(Descriptor.read(document.get("config"), str(reference))), f"the configuration of {reference}"
    )
    _ensure_same(platform, f"{config.get('os')}/{config.get('architecture')}", str(reference))
    stored = [Descriptor.read(item, str(reference)) for item in document.get("layers") or []]
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(stored) != len(diff_ids):
        raise StageError(f"{reference} is damaged: it has {len(stored)} layers and the digests of {len(diff_ids)}")
    for layer in stored:
        if any(word in layer.media_type for word in _FOREIGN):
            raise InputError(
                f"{reference} has layers that may not be handed on ({layer.media_type}); take another base"
            )
    layers = (
        Layer(Descriptor(_OCI_TYPES.get(one.media_type, one.media_type), one.digest, one.size), diff_id)
        for one, diff_id in zip(stored, diff_ids, strict=True)
    )
    return Base(
        tuple(layers),
        config.get("config") or {},
        tuple(config.get("history") or ()),
        _public_name(reference),
        descriptor.digest,
        place,
    )


def busybox_entries(busybox: Path, platform: str) -> list[Entry]:
    """The files of a system with a shell and some tools and nothing else, from a static busybox.

    KServe runs `sh -c "ln -sf … && sleep infinity"` inside a model image; without a shell it could not.
    Raises `RequirementError` if there is no static busybox, and `InputError` if it is for another platform.
    """
    remedy = "install the Debian package busybox-static, or take another base for the model image"
    try:
        with busybox.open("rb") as stream:
            head = stream.read(_ELF_BYTES)
    except FileNotFoundError as error:
        raise RequirementError(f"there is no {busybox}: {remedy}") from error
    if head[:4] != b"\x7fELF" or _is_dynamic(head, busybox):
        raise RequirementError(f"{busybox} is not a static program: {remedy}")
    machine = int.from_bytes(head[18:20], "little")
    _ensure_same(platform, f"linux/{_MACHINES.get(machine, machine)}", str(busybox))
    links = [symlink(f"bin/{applet}", "busybox") for applet in _APPLETS]
    return [folder("bin"), folder("tmp", 0o1777), file("bin/busybox", busybox, executable=True), *links]


def ensure_platform(platform: str) -> tuple[str, str]:
    """The operating system and the architecture of `linux/amd64`. Raises `InputError` if it is no such word."""
    system, _, architecture = platform.partition("/")
    if system != "linux" or not architecture.isalnum():
        raise InputError(f"{platform!r} is no platform of a container image: write linux/amd64 or linux/arm64")
    return system, architecture


def _public_name(reference: Reference) -> str:
    """What an image says of its base. Where a layout lies on this machine is no part of it."""
    if isinstance(reference, LayoutReference):
        return reference.tag or "layout"
    return str(replace(reference, digest=None))


def _is_dynamic(head: bytes, path: Path) -> bool:
    """Whether a 64-bit, little-endian ELF file asks for a dynamic loader (System V ABI, program headers)."""
    if head[4:6] != b"\x02\x01":
        raise RequirementError(f"{path} is not a 64-bit program")
    start, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    headers = (head[start + number * size : start + number * size + 4] for number in range(count))
    return any(int.from_bytes(one, "little") == _INTERPRETER for one in headers)


def _choose(descriptor: Descriptor, content: bytes, platform: str, place: str) -> Descriptor:
    listed = [Descriptor.read(item, place) for item in read_json(content, place).get("manifests") or []]
    for item in listed:
        if item.platform and _name(item.platform) == platform:
            return item
    there = ", ".join(sorted({_name(item.platform) for item in listed if item.platform})) or "none"
    raise InputError(f"{place} has no image for {platform}; it has: {there}")


def _name(platform: Mapping[str, str]) -> str:
    return f"{platform.get('os')}/{platform.get('architecture')}"


def _ensure_same(platform: str, found: str, place: str) -> None:
    if found != platform:
        raise InputError(f"{place} is for {found}, and the image is to be for {platform}: take a base for {platform}")
