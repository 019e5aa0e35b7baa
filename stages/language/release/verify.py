"""The stage `verify` of a language model: a release is served by the real vLLM, and its answers compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from calibration.windows import Windows
from stages.artifact import Artifact
from stages.check.per_sample import PerSample
from stages.errors import InputError, RequirementError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.release.vllm import Vllm, VllmServer, find_vllm
from stages.progress import SILENT, Progress
from stages.stage import Stage

__all__ = ["REPORT", "VERIFY_LANGUAGE", "VerifyLanguageOptions", "verify_language"]

REPORT = "verification.json"
_NEW_TOKENS = 8


class VerifyLanguageOptions(BaseModel):
    """How a release is verified.

    `vllm`: the folder of the virtual environment that vLLM is installed in; None takes what `find_vllm` finds.
    `windows` of the data are asked, evenly spaced; over all of them the perplexity may differ by the share `tolerance`
    from the one that was measured in process. `timeout_s`: for the server's start, and for one answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vllm: Path | None = None
    windows: PositiveInt = 32
    tolerance: PositiveFloat = 2e-3
    timeout_s: PositiveFloat = 600


def verify_language(
    *,
    release: Artifact,
    model: Artifact,
    data: Artifact,
    evaluation: Artifact,
    options: VerifyLanguageOptions,
    out: Path,
    progress: Progress = SILENT,
) -> Artifact:
    """Serve the checkpoint of `release` with vLLM, by the release's own engine arguments, and hold its perplexity
    against the one that `evaluation` has of `model` on the same windows.

    vLLM is asked through its own OpenAI-compatible server: Triton's vLLM backend hands the same arguments to the same
    engine, and is not run. On one device, whatever number the arguments say. Where the release only refers to its
    checkpoint, `model` itself is served: whether the object store holds the same is not looked at.

    Writes an artifact of kind `verification`: `verification.json`, whose content is the metadata too.

    Raises `StageError` if vLLM does not serve the release (with its reason), generates other than asked, or if the
    perplexity differs by more than the tolerance; `RequirementError` if there is no vLLM here, or it cannot run this
    form; `InputError` if the artifacts do not go together.
    """
    if release.kind != "release":
        raise InputError(f"{release.path} is a {release.kind}, not a release")
    vllm = _vllm(options.vllm)
    described = Checkpoint.of(model)
    if vllm.on_cpu and described.precision == "fp8":
        raise RequirementError("vLLM computes FP8 only on GPUs in usable time, and here it is a build for processors")
    windows = Windows.load(data.path)
    results = PerSample.of(evaluation)
    if results.statistics is None or len(results.statistics) != len(windows):
        raise InputError(f"{evaluation.path} is no evaluation on the windows of {data.path}")
    arguments = json.loads((release.path / release.metadata["file"]).read_text())
    inside = release.metadata["checkpoint"]  # None where the release only names an object store
    checkpoint = model.path if inside is None else release.path / inside
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(options.windows, len(windows))).round().astype(int))
    log = out / "vllm.log"
    progress.update(f"starting {vllm.name} {vllm.version}")
    with VllmServer(vllm, checkpoint, _here(arguments, windows.length), log=log, timeout_s=options.timeout_s) as server:
        served = np.zeros(2)
        for place, index in enumerate(chosen.tolist()):
            progress.update("asking vLLM", place, len(chosen))
            served += server.loss(windows.tokens[index], int(windows.first[index]))
        prompt = windows.tokens[0][: windows.length // 2]
        generated = server.generate(prompt, _NEW_TOKENS)
        ready_s = server.ready_s
    log.unlink()
    if generated != _NEW_TOKENS:
        raise StageError(f"vLLM generates {generated} tokens where {_NEW_TOKENS} were asked for")
    measured = results.statistics[chosen].sum(axis=0)
    perplexity = {"served": _perplexity(served), "measured": _perplexity(measured)}
    difference = perplexity["served"] / perplexity["measured"] - 1
    if not abs(difference) <= options.tolerance:
        raise StageError(
            f"vLLM's perplexity on {len(chosen)} windows is {perplexity['served']:.4f}, measured in process it is "
            f"{perplexity['measured']:.4f}: {difference:+.2%} (allowed {options.tolerance:.2%})"
        )
    metadata: dict[str, Any] = {
        "server": vllm.name,
        "server_version": vllm.version,
        "ready_s": round(ready_s, 3),
        "windows": len(chosen),
        "perplexity": perplexity,
        "difference": difference,
        "tolerance": options.tolerance,
    }
    (out / REPORT).write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n")
    made_from = {"release": release, "model": model, "data": data, "evaluation": evaluation}
    return Artifact.write(out, "verification", metadata, made_from)


def _vllm(environment: Path | None) -> Vllm:
    try:
        return find_vllm(environment)
    except RequirementError as error:
        raise RequirementError(
            f"the release cannot be verified on this machine: {error}. Or publish it unverified: --no-verify"
        ) from error


def _here(arguments: dict[str, Any], window: int) -> dict[str, Any]:
    """The engine arguments for one device of this machine; compiling graphs would take minutes and prove no more.

    A whole window must have room, and one token after it, without which vLLM reads no prompt.
    """
    kept = {name: value for name, value in arguments.items() if name not in ("model", "tensor_parallel_size")}
    room = max(int(kept.get("max_model_len") or 0), window + 1)
    return kept | {"enforce_eager": True, "max_model_len": room}


def _perplexity(statistics: Any) -> float:
    return float(np.exp(statistics[0] / statistics[1]))


VERIFY_LANGUAGE = Stage(name="verify language", revision=1, function=verify_language, libraries=("httpx",))
