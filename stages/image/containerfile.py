"""The same images for people who prefer `docker build`: a Containerfile, with the model repository as its context."""

from __future__ import annotations

import json

from model_repository.layout import CONFIG
from stages.image.contents import MODELS, Release
from stages.image.server import GROUP, PORTS, STOP_SIGNAL, USER, server_command

__all__ = ["containerfile"]


def containerfile(release: Release, kind: str, base: str) -> str:
    """The text of a Containerfile. Its images work as ours do, but are not the same bit for bit, and have no evidence.

    Large files come first, one a layer, so that an engine's cache keeps them. Their paths hold the version: a new
    version is sent whole.
    """
    own = f"{release.model}/{release.version}"
    sizes = {name: (release.path / name).stat().st_size for name in release.files}
    ordered = sorted(release.files, key=lambda name: (-sizes[name], name))
    lines = [
        f"# The {kind} image of {release.model}, version {release.version} (release sha256:{release.digest}).",
        "# Build it with the model repository as the context:  docker build -f Containerfile REPOSITORY",
        f"FROM {base}",
    ]
    if kind == "serving":
        lines.append("USER root")
    for name in ordered:
        lines.append(f"COPY {_words(f'{own}/{name}', f'/{MODELS}/{own}/{name}')}")
    lines.append(f"COPY {_words(f'{own}/{CONFIG}', f'/{MODELS}/{release.model}/{CONFIG}')}")
    lines.append(f"USER {USER}:{GROUP}")
    if kind == "serving":
        lines += [
            "ENV ORT_DISABLE_TELEMETRY=1",
            f"EXPOSE {' '.join(map(str, PORTS.values()))}",
            f"STOPSIGNAL {STOP_SIGNAL}",
            f"CMD {json.dumps(server_command())}",
        ]
    return "\n".join(lines) + "\n"


def _words(*words: str) -> str:
    return json.dumps(list(words), ensure_ascii=False)
