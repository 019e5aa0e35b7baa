"""The launch files of a release: how each server that loads the checkpoint is started, here and in containers.

For each a script, and for vLLM and TGI a Compose file and Kubernetes objects, with health checks and a first request
that warms the server up. They lie in `launch/`, and know nothing but what lies beside them.
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from stages.language.release.manifests import compose, dns_name, kubernetes
from stages.language.release.servers import (
    ENVIRONMENT,
    PORT,
    RELEASE,
    TENSORRT_LLM,
    TGI,
    VLLM,
    Launch,
    Server,
    tensorrt_llm_arguments,
    tgi_arguments,
    vllm_arguments,
    warm_up_request,
)

__all__ = ["LAUNCH", "launch_files"]

LAUNCH = "launch"
"""The folder of the launch files in a release."""

_LOCAL = ["--host", "127.0.0.1", "--port", str(PORT)]
_HANDED_ON = '"$@"'
_SCRIPT = "It answers on this machine only, at port 8000. Further arguments are handed on."


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice out twice: not every reader of manifests knows YAML's anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def launch_files(launch: Launch) -> dict[str, str]:
    """The launch files, by name (relative to the release), for every server that loads the checkpoint."""
    files = {"warm_up.sh": _warm_up(launch), "vllm.sh": _vllm(launch)}
    servers = [(VLLM, vllm_arguments(launch, RELEASE))]
    if TGI.key not in launch.left_out:
        files["tgi.sh"] = _tgi(launch)
        address = ["--hostname", "0.0.0.0", "--port", str(PORT)]  # noqa: S104 - within its container
        servers.append((TGI, [*tgi_arguments(launch, RELEASE), *address]))
    if TENSORRT_LLM.key not in launch.left_out:
        files[f"{TENSORRT_LLM.key}.sh"] = _tensorrt_llm(launch)
    for server, arguments in servers:
        name = f"{server.key}.compose.yaml"
        files[name] = _yaml(_compose_head(server, name), compose(server, arguments, launch))
        head = _kubernetes_head(server, launch)
        files[f"{server.key}.kubernetes.yaml"] = _yaml(head, *kubernetes(server, arguments, launch))
    return {f"{LAUNCH}/{name}": text for name, text in sorted(files.items())}


def _vllm(launch: Launch) -> str:
    command = ["vllm", "serve", *vllm_arguments(launch), *_LOCAL]
    return _script(f"{VLLM.about}\n{_SCRIPT}", f"exec {shlex.join(command)} {_HANDED_ON}")


def _tgi(launch: Launch) -> str:
    # It refuses an argument that is given twice, but lets one go before its variable in the environment.
    address = f"export HOSTNAME=127.0.0.1 PORT={PORT}"
    command = ["text-generation-launcher", *tgi_arguments(launch)]
    return _script(f"{TGI.about}\n{_SCRIPT}", f"{address}\nexec {shlex.join(command)} {_HANDED_ON}")


def _tensorrt_llm(launch: Launch) -> str:
    command = ["trtllm-serve", *tensorrt_llm_arguments(launch), *_LOCAL]
    note = "\nThe release's LoRA adapters are not served: they would need a file of its own (--config)."
    head = f"{TENSORRT_LLM.about}{note if launch.adapters else ''}\n{_SCRIPT}"
    return _script(head, f"exec {shlex.join(command)} {_HANDED_ON}")


def _warm_up(launch: Launch) -> str:
    *command, url = warm_up_request(launch, "")
    head = "Asks a server for a few tokens, so that its first request is done.\nUsage: warm_up.sh [ADDRESS]"
    return _script(head, f'exec {shlex.join(command)} "${{1:-http://127.0.0.1:{PORT}}}"{url}')


def _script(head: str, body: str) -> str:
    exports = f"export {' '.join(f'{name}={value}' for name, value in ENVIRONMENT.items())}"
    lines = ["#!/bin/sh", *_comments(head), "set -eu", 'cd -- "$(dirname -- "$0")/.."', exports, body]
    return "\n".join(lines) + "\n"


def _compose_head(server: Server, name: str) -> str:
    start = f"docker compose -f {LAUNCH}/{name} up"
    return f"{server.about}\nStart: {start}\nIt answers on this machine only, at port {PORT}, and is then warmed up."


def _kubernetes_head(server: Server, launch: Launch) -> str:
    if launch.in_release:
        claim = f"on a volume with a claim called {dns_name(launch.name)}"
        return f"{server.about}\nPut the folder above this one (a version's folder) {claim}."
    return f"{server.about}\nThe checkpoint is at {launch.arguments['model']}: the pod needs the right to read it."


def _yaml(head: str, *documents: dict[str, Any]) -> str:
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=len(documents) > 1)
    return "\n".join([*_comments(head), text])


def _comments(text: str) -> list[str]:
    return [f"# {line}" for line in text.splitlines()]
