"""`deployment.json`: what was rendered, for programs. `optimize rollout` reads it beside the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.errors import InputError

__all__ = ["DEPLOYMENT", "Deployment", "Strategy", "Target", "VersionSummary"]

DEPLOYMENT = "deployment.json"

Strategy = Literal["blue-green", "canary", "shadow"]
Target = Literal["compose", "kubernetes", "kserve", "argo", "traefik"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionSummary(_Document):
    """One version: its number, the digest of its release (null: published by hand), variant and image."""

    version: int
    digest: str | None
    variant: str | None
    image: str


class Deployment(_Document):
    """`run`: the folder of the front door's sockets, relative to the file; null where there is no front door."""

    format: Literal[1] = 1
    model: str
    target: Target
    strategy: Strategy
    stable: VersionSummary
    candidate: VersionSummary | None = None
    run: str | None = None
    not_validated: dict[str, str] = Field(default_factory=dict)
    """Files that no check was made of, or not the whole one, each with the reason."""

    @classmethod
    def read(cls, folder: Path) -> Deployment:
        """The deployment in a folder. Raises `InputError` if there is none."""
        file = folder / DEPLOYMENT
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no {DEPLOYMENT}: name the folder that `optimize deploy` wrote") from error
        except ValidationError as error:
            raise InputError(f"{file} is not a deployment of this program: {error}") from error
