"""Makes the images of a release and brings them to a layout or a registry; what they are called is said last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.errors import InputError, StageError
from stages.image.base import Base, busybox_entries, ensure_platform, read_base
from stages.image.contents import Part, Release, parts
from stages.image.documents import CONFIG, Descriptor, described, manifest, timestamp
from stages.image.evidence import PROVENANCE, SBOM, SIGNATURE, About, attach, provenance, sbom, sign
from stages.image.layer_cache import LayerCache
from stages.image.layers import Brought, Carrier
from stages.image.layout import Layout
from stages.image.modelpack import modelpack
from stages.image.options import BUSYBOX_BASE, SCRATCH, ImageOptions, Kind
from stages.image.place import Place, open_place
from stages.image.reference import Reference, parse_reference
from stages.image.registry import Access, RegistryRepository
from stages.image.server import GROUP, PORTS, USER, server_command, server_settings
from stages.progress import SILENT, Progress

__all__ = ["Built", "build_images"]

_PATH = "PATH=/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Built:
    """An image that was made. Deploy it by `reference`, which has its digest; `tag` is the same by name.

    `size_bytes` is that of all layers as they are stored; `sent_bytes` what went to a registry for it.
    `evidence` are the types of what was attached. `user`, `ports` and `command` are those of a serving image.
    """

    kind: str
    reference: str
    tag: str
    digest: str
    platform: str
    size_bytes: int
    sent_bytes: int
    base: str | None
    layers: tuple[Mapping[str, Any], ...]
    evidence: tuple[str, ...]
    user: str | None
    ports: Mapping[str, int]
    command: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {**vars(self), "ports": dict(self.ports), "layers": [dict(layer) for layer in self.layers]}


def build_images(
    *,
    release: Release,
    to: Reference,
    options: ImageOptions | None = None,
    access: Access | None = None,
    layer_cache: Path | None = None,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> list[Built]:
    """Make the images of a release in the place `to`, a layout or a repository of a registry.

    The image of the only kind gets the tag of `to` (by default `v<version>`); of several kinds, `-serving` is added
    to it for the serving image, and `-modelpack` for a ModelPack manifest. Layers come before their manifest, evidence
    before the names: after an error at any point no name has changed. The same release, base and options give the same
    digest anywhere and at any time.

    `layer_cache` remembers which files gave which layer; `scratch` is where layers lie on their way to a registry.

    Raises `InputError` for a base or a place that cannot be used, `RequirementError` for what is missing on this
    machine, and `StageError` if a registry or a disk fails.
    """
    options, access = options or ImageOptions(), access or Access()
    ensure_platform(options.platform)
    if to.digest:
        raise InputError(f"{to}: where an image goes has a name; its digest comes of its content")
    tag = to.tag or f"v{release.version}"
    content = parts(release, options.weights_from_bytes)
    built: list[Built] = []
    names: list[tuple[Descriptor, bytes, str]] = []
    with open_place(to, access) as place:
        if isinstance(place, Layout):
            place.create()
        carrier = Carrier(
            place, LayerCache(layer_cache), scratch, options.source_date_epoch, options.mount_from, progress
        )
        for kind in options.kinds:
            before = _sent(place)
            name = tag if len(options.kinds) == 1 or kind == "model" else f"{tag}-serving"
            with _base(kind, options, access) as (base, extra):
                brought = [*carrier.base(base), *carrier.release([*extra, *content])]
                image, document = _assemble(place, kind, release, base, brought, options)
            place.put_manifest(image, document)
            progress.update(f"attaching evidence to the {kind} image")
            about = About(image, kind, release, options.platform, options.source_date_epoch, base.name, base.digest)
            evidence = _attach(place, about, document, options)
            names.append((image, document, name))
            serving = kind == "serving"
            built.append(
                Built(
                    kind,
                    str(to.at(image.digest)),
                    str(to.tagged(name)),
                    image.digest,
                    options.platform,
                    sum(one.layer.descriptor.size for one in brought),
                    _sent(place) - before,
                    f"{base.name}@{base.digest}" if base.digest else options.model_base,
                    tuple(
                        {"name": one.name, "digest": one.layer.descriptor.digest, "how": one.how,
                         "size_bytes": one.layer.descriptor.size}
                        for one in brought
                    ),
                    evidence,
                    f"{USER}:{GROUP}" if serving else None,
                    PORTS if serving else {},
                    tuple(server_command()) if serving else (),
                )
            )  # fmt: skip
        if options.modelpack:
            pack, document = modelpack(place, release, carrier.release(content), content, options.source_date_epoch)
            place.put_manifest(pack, document)
            names.append((pack, document, f"{tag}-modelpack"))
        for number, (image, document, name) in enumerate(names):
            before = _sent(place)
            place.tag(image, document, name)
            if number < len(built):
                built[number] = replace(built[number], sent_bytes=built[number].sent_bytes + _sent(place) - before)
    return built


def _sent(place: Place) -> int:
    return place.sent_bytes if isinstance(place, RegistryRepository) else 0


@contextmanager
def _base(kind: Kind, options: ImageOptions, access: Access) -> Iterator[tuple[Base, list[Part]]]:
    """The base of an image, and the layers that stand in for one."""
    named = options.model_base if kind == "model" else options.serving_base
    if named in (SCRATCH, BUSYBOX_BASE):
        if kind == "serving":
            raise InputError(f"{named!r} has no server; the base of a serving image is one with Triton")
        entries = busybox_entries(options.busybox, options.platform) if named == BUSYBOX_BASE else []
        yield Base(), [Part("busybox", tuple(entries), "zstd")] if entries else []
        return
    with ExitStack() as opened:
        reference = parse_reference(named)
        place = opened.enter_context(open_place(reference, access))
        try:
            base = read_base(place, reference, options.platform)
        except StageError as error:
            raise StageError(
                f"the base {named} cannot be had: {error}. Where no registry can be reached, take a layout (oci:DIR) "
                "or, for a serving image, `--base local`"
            ) from error
        yield base, []


def _assemble(
    place: Place, kind: Kind, release: Release, base: Base, brought: Sequence[Brought], options: ImageOptions
) -> tuple[Descriptor, bytes]:
    """Store the configuration of an image and return its manifest."""
    created = timestamp(options.source_date_epoch)
    system, architecture = ensure_platform(options.platform)
    settings = dict(base.settings or {})
    if kind == "serving":
        settings |= server_settings()
        variables = list(settings.get("Env") or [_PATH])
        settings["Env"] = [*(one for one in variables if not one.startswith(_TELEMETRY)), f"{_TELEMETRY}1"]
    else:
        settings |= {"User": f"{USER}:{GROUP}", "Env": list(settings.get("Env") or ["PATH=/bin"])}
    config, content = described(
        {
            "created": created,
            "os": system,
            "architecture": architecture,
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [one.layer.diff_id for one in brought]},
            "history": [
                *base.history,
                *(
                    {"created": created, "created_by": f"optimize image: {one.name}"}
                    for one in brought[len(base.layers) :]
                ),
            ],
        },
        CONFIG,
    )
    place.put(config, content)
    annotations = {
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.title": f"{release.model}-{kind}",
        "org.opencontainers.image.version": str(release.version),
        "optimize.release.digest": f"sha256:{release.digest}",
    }
    if base.name and base.digest:
        annotations |= {
            "org.opencontainers.image.base.name": base.name,
            "org.opencontainers.image.base.digest": base.digest,
        }
    return manifest(config, [one.layer.descriptor for one in brought], annotations)


_TELEMETRY = "ORT_DISABLE_TELEMETRY="  # ONNX Runtime would report to its makers


def _attach(place: Place, about: About, document: bytes, options: ImageOptions) -> tuple[str, ...]:
    if not options.evidence:
        if options.sign_key:
            raise InputError("a signature covers the provenance: an image without evidence cannot be signed")
        return ()
    files = {"manifest.json": document, "provenance.json": provenance(about), "sbom.json": sbom(about)}
    evidence = [(PROVENANCE, files["provenance.json"]), (SBOM, files["sbom.json"])]
    if options.sign_key:
        evidence.append((SIGNATURE, sign(files, options.sign_key)))
    for media_type, content in evidence:
        attach(place, about.image, media_type, content)
    return tuple(media_type for media_type, _ in evidence)
