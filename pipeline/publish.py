"""From the chosen variant, packaged and verified, to a release, and to images of it where the recipe asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_repository import Published, Repository
from model_repository.tensorrt_versions import ensure_loads, record_server
from pipeline.recipe import ImageRecipe, Recipe
from pipeline.result import ImageResult, Release, RunResult
from pipeline.runner import Runner
from stages.errors import InputError, RequirementError, StageError
from stages.variant import Variant

__all__ = ["make_images_of", "publish"]


def publish(
    recipe: Recipe, runner: Runner, name: str, variant: Variant, result: RunResult, record: Callable[[], None]
) -> None:
    """Publish the package that `runner` has of `variant` as the next version of the model `name`, and say in `result`
    what was published, and what a person should know of it.

    `record` is called once the release is certain, before it is visible, so that it can name the run that holds its
    evidence. Raises `RepositoryError` if it cannot be published.
    """
    repository = Repository(recipe.repository)
    package = runner.artifacts["package"]
    # An engine goes into no repository whose server could not load it.
    if recipe.serving.server is not None:
        record_server(repository.path, recipe.serving.server)
    if engine := package.metadata.get("engine"):
        ensure_loads(repository.path, engine)
    package.verify()  # the server may have answered from it long ago; what is published is what it had then

    def provenance() -> dict[str, Any]:
        record()
        return _provenance(recipe, runner, variant, result)

    published = repository.publish(name, package.path, provenance)
    result.release = _release(repository, published, variant.name, "verify" in runner.artifacts)
    where = f"{name} version {published.version} ({variant.name}) in {recipe.repository}"
    result.message = f"published {where}" if published.new else f"nothing to do: {where} is this very release"
    _warn(runner, variant, result)


def make_images_of(asked: ImageRecipe, result: RunResult, note: Callable[[str], None]) -> None:
    """Make the images that a recipe asks for of the release in `result`, and name them there.

    The release stays what it is whatever comes of them: a failure is told in the message and gives the exit code.
    """
    from pipeline.images import ImageRequest, make_images
    from stages.image.registry import Access

    assert result.release is not None
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    request = ImageRequest(
        repository=Path(result.release.repository),
        model=f"{result.release.model}@{result.release.version}",
        to=asked.to,
        kinds=("model", "serving") if asked.kind == "both" else (asked.kind,),
        base=asked.base,
        model_base=asked.model_base,
        platform=asked.platform,
        modelpack=asked.modelpack,
        mount_from=asked.mount_from,
        sign_key=None if asked.sign_key is None else Path(asked.sign_key),
        evidence=asked.evidence,
        access=Access(plain_http=asked.plain_http, config=config),
    )
    try:
        built = make_images(request, note)
    except (InputError, StageError, RequirementError) as error:
        code = {InputError: 2, RequirementError: 5}
        result.exit_code = next((number for kind, number in code.items() if isinstance(error, kind)), 4)
        result.message += f"; but no image was made of it: {error}"
        return
    fields = ImageResult.model_fields
    result.images = [
        ImageResult(**{name: value for name, value in one.json().items() if name in fields}) for one in built
    ]
    result.message += "".join(f"; {one.kind} image {one.reference}" for one in result.images)


def _warn(runner: Runner, variant: Variant, result: RunResult) -> None:
    row = next(row for row in result.variants if row.name == variant.name)
    if row.baseline and len(result.variants) > 1:
        passed = [row.name for row in result.variants if row.verdict == "pass" and not row.baseline]
        why = f"{', '.join(passed)} passed, but none is known to be better" if passed else "no other variant passed"
        result.warnings.append(f"the baseline was published: {why}")
    verification = runner.artifacts.get("verify")
    if verification is None:
        result.warnings.append("no server has loaded this release (--no-verify)")
    elif shift := max((verification.metadata.get("arithmetic_shift") or {}).values(), default=0.0):
        result.warnings.append(
            f"Triton's OpenVINO backend computes in BF16 on a processor like this one, and {variant.name} was measured "
            f"in FP32: its answers differ by {shift:.2g} of the largest magnitude"
        )


def _provenance(recipe: Recipe, runner: Runner, variant: Variant, result: RunResult) -> dict[str, Any]:
    """What is kept beside a release: where it comes from, how it was made, and what was measured."""
    verification = runner.artifacts.get("verify")
    return {
        "source": {"reference": recipe.model, "digest": result.source_digest},
        "variant": variant.model_dump(mode="json"),
        "engine": runner.artifacts["package"].metadata.get("engine"),
        "engines": runner.artifacts["package"].metadata.get("engines"),
        "measured": next(row for row in result.variants if row.name == variant.name).model_dump(mode="json"),
        "evidence": result.evidence,
        "data": [figures.model_dump(mode="json") for figures in result.data],
        "verification": None if verification is None else dict(verification.metadata),
        "recipe": recipe.model_dump(mode="json", serialize_as_any=True),
        "job_id": result.job_id,
        "mlflow": None if result.mlflow is None else result.mlflow.model_dump(mode="json"),
        "libraries": result.libraries,
        "host": result.host,
    }


def _release(repository: Repository, published: Published, winner: str, verified: bool) -> Release:
    return Release(
        repository=str(repository.path),
        model=published.model,
        version=published.version,
        variant=winner,
        digest=published.digest,
        verified=verified,
        new=published.new,
    )
