"""`optimize image`: container images of a release, and `optimize image verify`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stages.image.build import Built
    from stages.image.options import Kind
    from stages.image.registry import Access

__all__ = ["image"]

_KINDS: dict[str, tuple[Kind, ...]] = {"model": ("model",), "serving": ("serving",), "both": ("model", "serving")}
_PLACE = click.Path(path_type=Path)
_plain_http = click.option("--plain-http", is_flag=True, help="Registries without TLS.")
_credentials = click.option(
    "--registry-config", metavar="FILE", type=_PLACE, help="Credentials, as `docker login` keeps them [its own file]."
)
_ca = click.option("--ca-file", metavar="FILE", type=_PLACE, help="Certificates to trust instead of the usual ones.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
_debug = click.option("--debug", is_flag=True, help="Show tracebacks.")


class _BuildByDefault(click.Group):
    """`image verify …` is a command; anything else is a repository to make an image from."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "-h", "--help"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_BuildByDefault, short_help="Container images of a release.")
def image() -> None:
    """Make container images of a release, without a container engine: `optimize image REPOSITORY MODEL --to PLACE`.

    `build` is what is done when no command is named; `optimize image build --help` tells its options. (A repository
    whose folder is called `build` or `verify` is written `./build`.)
    """


@image.command(short_help="Make images and push them; what `optimize image` does.")
@click.argument("repository", type=_PLACE)
@click.argument("model")
@click.option("--to", required=True, metavar="PLACE", help="oci:DIR[:name], or registry/name[:tag].")
@click.option(
    "--kind",
    type=click.Choice(list(_KINDS)),
    default="model",
    show_default=True,
    help="The model alone, or with a Triton server.",
)
@click.option(
    "--base",
    metavar="IMAGE",
    help="Of a serving image: local (Debian and a Triton for CPUs, made here), "
    "oci:DIR[:name] or registry/name[:tag][@digest] [NVIDIA's Triton].",
)
@click.option(
    "--model-base",
    metavar="IMAGE",
    default="busybox",
    show_default=True,
    help="Of a model image: busybox, scratch, or an image.",
)
@click.option("--platform", default="linux/amd64", show_default=True, help="Of bases and images.")
@click.option(
    "--source-date-epoch",
    metavar="SECONDS",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The time of everything in the images.",
)
@click.option("--modelpack", is_flag=True, help="A CNCF ModelPack manifest too.")
@click.option(
    "--mount-from",
    metavar="NAME",
    multiple=True,
    help="Another repository of the registry that may have the layers already.",
)
@click.option("--sign-key", metavar="FILE", type=_PLACE, help="Sign with this private key (PEM, P-256/384/521).")
@click.option("--cosign-key", metavar="KEY", help="Sign with the program cosign and this key of its.")
@click.option("--no-evidence", is_flag=True, help="Attach no bill of materials and no provenance.")
@click.option(
    "--containerfile",
    metavar="FILE",
    type=_PLACE,
    help="Write a Containerfile too (with --kind both that of the serving image).",
)
@click.option(
    "--cache", metavar="DIR", type=_PLACE, help="Where known layers and the local base are kept [user's cache]."
)
@_plain_http
@_credentials
@_ca
@_json
@_debug
def build(
    repository: Path, model: str, to: str, kind: str, base: str | None, model_base: str, platform: str,
    source_date_epoch: int, modelpack: bool, mount_from: tuple[str, ...], sign_key: Path | None,
    cosign_key: str | None, no_evidence: bool, containerfile: Path | None, cache: Path | None, plain_http: bool,
    registry_config: Path | None, ca_file: Path | None, as_json: bool, debug: bool,
) -> None:  # fmt: skip
    """Make images of MODEL (or MODEL@VERSION) in REPOSITORY and bring them to PLACE."""
    from pipeline.images import ImageRequest, make_images

    built = make_images(
        ImageRequest(
            repository=repository,
            model=model,
            to=to,
            kinds=_KINDS[kind],
            base=base,
            model_base=model_base,
            platform=platform,
            source_date_epoch=source_date_epoch,
            modelpack=modelpack,
            mount_from=mount_from,
            sign_key=sign_key,
            cosign_key=cosign_key,
            evidence=not no_evidence,
            containerfile=containerfile,
            cache=cache,
            access=_access(plain_http, registry_config, ca_file),
        ),
        note=lambda text: click.echo(text, err=True),
    )
    for one in built:
        _tell(one)
    if as_json:
        click.echo(json.dumps([one.json() for one in built], indent=1))


@image.command(short_help="Hold an image against its digest, signature and provenance.")
@click.argument("reference")
@click.option("--key", required=True, metavar="FILE", type=_PLACE, help="The signer's public key (PEM).")
@click.option("--cosign-key", metavar="KEY", help="Ask the program cosign too, with this key.")
@_plain_http
@_credentials
@_ca
@_json
@_debug
def verify(
    reference: str, key: Path, cosign_key: str | None, plain_http: bool, registry_config: Path | None,
    ca_file: Path | None, as_json: bool, debug: bool,
) -> None:  # fmt: skip
    """Verify the image REFERENCE (oci:DIR[:name] or registry/name[:tag][@digest]). Exit code 4 if it is refused."""
    from stages.image.evidence.cosign import cosign_verify
    from stages.image.reference import parse_reference
    from stages.image.verify import verify_image

    parsed = parse_reference(reference)
    verified = verify_image(parsed, key, _access(plain_http, registry_config, ca_file))
    if cosign_key:
        cosign_verify(parsed.at(verified.digest), cosign_key)
    click.echo(f"{verified.reference}", err=True)
    click.echo(
        f"  {verified.layers} layers, {verified.size_bytes / 1e6:.1f} MB: digests, signature and provenance are right",
        err=True,
    )
    if as_json:
        click.echo(json.dumps(verified.json(), indent=1))


def _access(plain_http: bool, config: Path | None, ca: Path | None) -> Access:
    from stages.image.registry import Access

    if config is None:
        config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    return Access(plain_http=plain_http, config=config, ca=ca)


def _tell(built: Built) -> None:
    click.echo(f"{built.kind} image {built.tag}", err=True)
    click.echo(f"  {built.reference}", err=True)
    for layer in built.layers:
        click.echo(f"  {layer['size_bytes'] / 1e6:>9.2f} MB  {layer['how']:<8} {layer['name']}", err=True)
    if built.sent_bytes:
        click.echo(f"  sent {built.sent_bytes} bytes", err=True)
