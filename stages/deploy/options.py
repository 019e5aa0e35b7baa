"""What is asked of a deployment."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from stages.deploy.deployment import Strategy, Target
from stages.errors import InputError
from stages.image.reference import LayoutReference, parse_reference

__all__ = ["DeployOptions", "pinned"]

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_Name = Annotated[str, Field(max_length=253, pattern=rf"^{_LABEL}(\.{_LABEL})*$")]
"""As DNS has them."""


class DeployOptions(BaseModel):
    """Options of `deploy`.

    `image` and `candidate_image`: `registry/name@sha256:…`. Without `server_image` they hold a server and the model;
    with it they hold the model alone (below `/models`) and are mounted into that server, which is how Kubernetes' image
    volumes work. KServe takes model images only, and its own server of `runtime_version`.

    `namespace`: of the objects (None: the one that `kubectl` is in). `host`: the name that clients ask by. `replicas`,
    `max_replicas`: of one version on a cluster. `cpus`: of one server. `gateway`: the name of the Gateway that routes
    belong to. `keys`: SHA-256 of the API keys that the front door of one host knows. `share_percent`: the candidate's
    first share of a canary; `mirror_percent`: what a shadow sees. `slower_alert`: how many times the recorded p99 is
    worth an alert. `requests_per_10s`, `body_bytes`, `answer_s`: of one client. The last three name the images of the
    other programs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Target
    strategy: Strategy = "canary"
    image: str
    candidate_image: str | None = None
    server_image: str | None = None
    host: _Name = "inference.example.com"
    gateway: _Name = "inference"
    namespace: Annotated[str, Field(pattern=f"^{_LABEL}$")] | None = None
    runtime_version: str = "26.07-py3"
    replicas: PositiveInt = 2
    max_replicas: PositiveInt = 6
    cpus: PositiveInt = 2
    keys: tuple[_Digest, ...] = ()
    share_percent: Annotated[int, Field(ge=1, le=99)] = 5
    mirror_percent: Annotated[int, Field(ge=1, le=100)] = 10
    slower_alert: Annotated[float, Field(gt=1)] = 2.0
    requests_per_10s: PositiveInt = 1000
    body_bytes: PositiveInt = 16 * 1024 * 1024
    answer_s: Annotated[int, Field(ge=1, le=99_999)] = 30  # the Gateway API writes durations with five digits
    port: Annotated[NonNegativeInt, Field(le=65535)] = 8443
    haproxy_image: str = "docker.io/library/haproxy:3.2"
    prometheus_image: str = "docker.io/prom/prometheus:v3.5.0"
    grafana_image: str = "docker.io/grafana/grafana:12.1.0"

    @field_validator("max_replicas")
    @classmethod
    def _at_least_the_replicas(cls, value: int, info: object) -> int:
        if value < getattr(info, "data", {}).get("replicas", 1):
            raise ValueError("is smaller than replicas")
        return value


def pinned(option: str, image: str) -> str:
    """An image that cannot change under its name. Raises `InputError` for one by tag, or in a folder."""
    reference = parse_reference(image)
    if isinstance(reference, LayoutReference):
        raise InputError(f"{option} {image}: servers pull from a registry; push it there with `optimize image --to`")
    if reference.digest is None:
        raise InputError(
            f"{option} {image}: a tag may mean another image tomorrow; write "
            f"{reference.host}/{reference.name}@sha256:…, as `optimize image` prints it"
        )
    return str(reference)
