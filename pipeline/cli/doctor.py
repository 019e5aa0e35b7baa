"""`optimize doctor`: what this machine can and cannot do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import get_args

import click

__all__ = ["doctor"]


@click.command(short_help="What this machine can and cannot do.")
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps are kept.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def doctor(store: Path | None, debug: bool) -> None:
    """Tell what is installed, what is missing, and what that means. Exit code 5 if `optimize run` cannot work."""
    from pipeline.account import LIBRARIES
    from pipeline.records.address import public
    from pipeline.store import default_store, library_versions
    from stages.host import host_fingerprint

    wrong = 0
    click.echo("this machine")
    for key, value in host_fingerprint().items():
        click.echo(f"  {key:<16} {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    click.echo("libraries")
    for name, version in library_versions(LIBRARIES).items():
        if name == "onnxruntime" and version == "absent":
            version = library_versions(("onnxruntime-gpu",))["onnxruntime-gpu"]  # the same import
        if version == "absent":
            wrong += 1
            version = "MISSING: pip install it with the project's constraints file"
        click.echo(f"  {name:<16} {version}")
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if library_versions((name,))[name] != "absent"]
    if len(both) == 2:
        wrong += 1
        click.echo("  onnxruntime and onnxruntime-gpu are both installed; they overwrite each other: keep one")
    click.echo("places")
    path = store or default_store()
    free = shutil.disk_usage(path if path.exists() else Path.home()).free
    click.echo(f"  {'store':<16} {path} ({free / 1e9:.0f} GB free)")
    mlflow = public(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db in the current folder")
    click.echo(f"  {'MLflow':<16} {mlflow}")
    _webhooks()
    click.echo("runtimes")
    _runtimes()
    click.echo("targets")
    click.echo(f"  {'cpu':<16} {', '.join(_variants('cpu'))}")
    _gpu_targets()
    click.echo("server")
    wrong += not _server()
    if wrong:
        sys.exit(5)


def _webhooks() -> None:
    """Tell what breaks webhooks in silence. Runs need none of it."""
    from pipeline.records.address import is_server
    from pipeline.triggers.hooks import examine

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not is_server(uri):
        click.echo(f"  {'':<16} no server: what is registered there fires no webhooks")
        return
    for finding in examine(uri):
        click.echo(f"  {finding.name:<16} {'WRONG: ' if finding.state == 'wrong' else ''}{finding.text}")


def _runtimes() -> None:
    """Tell what each runtime computes with on this processor, and the variants that it runs."""
    from stages.errors import RequirementError
    from stages.runtime.openvino import capabilities, import_openvino

    try:
        import onnxruntime
    except ImportError:
        click.echo(f"  {'onnxruntime':<16} not installed")
    else:
        click.echo(f"  {'onnxruntime':<16} {onnxruntime.__version__}, with its CPUExecutionProvider")
    click.echo(f"  {'':<16} runs {', '.join(_variants('cpu', 'onnxruntime'))}")
    try:
        version = import_openvino().get_version().split("-")[0]
        click.echo(f"  {'openvino':<16} {version}, on this processor in {', '.join(capabilities())}")
    except RequirementError as error:
        click.echo(f"  {'openvino':<16} {error}")
    click.echo(f"  {'':<16} runs {', '.join(_variants('cpu', 'openvino'))}")


def _gpu_targets() -> None:
    """Tell which GPUs there are, what of the software for them is installed, and what a run for them would do here."""
    from stages.gpu import gpus
    from stages.host import versions
    from stages.target import TARGET_RUNTIMES, lacking

    for target in TARGET_RUNTIMES:
        if target == "cpu":
            continue
        reason = lacking(target)
        click.echo(f"  {target:<16} {', '.join(_variants(target))}")
        click.echo(f"  {'':<16} {'can run here' if reason is None else f'only made and checked here: {reason}'}")
    click.echo("GPUs")
    for gpu in gpus():
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "memory not told"
        click.echo(
            f"  {gpu.index:<16} {gpu.name}, {memory}, compute capability {gpu.capability}, "
            f"driver {gpu.driver} (CUDA {gpu.cuda})"
        )
    if not gpus():
        click.echo(f"  {'':<16} none that NVIDIA's driver shows (NVML)")
    names = ("onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu13-bindings", "cuda-bindings")
    found = versions([*names, "nvidia-ml-py"])
    for name in (*names, "nvidia-ml-py"):
        if name in found:
            click.echo(f"  {name:<16} {found[name]}")
    if not found.keys() & {"tensorrt", "tensorrt-cu12", "tensorrt-cu13"}:
        click.echo(f"  {'tensorrt':<16} not installed")


def _variants(target: str, runtime: str = "") -> list[str]:
    """The types of variants for a target, or their names in one of its runtimes."""
    from stages.variants import VARIANTS

    suited = {name: variant for name, variant in VARIANTS.items() if target in variant.targets}
    if not runtime:
        return list(suited)
    return [
        variant.model_validate({"type": name, "runtime": runtime}).name
        for name, variant in suited.items()
        if runtime in get_args(variant.model_fields["runtime"].annotation)
    ]


def _server() -> bool:
    """Tell whether the Triton that verifies releases is there or can be made."""
    from model_repository.environment import existing_environment

    found = existing_environment()
    if found is not None:
        click.echo(f"  {'triton':<16} {found.version} in {found.path}")
        return True
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        click.echo(f"  {'triton':<16} cannot be made: Python's venv is missing (Debian: apt install python3-venv)")
        return False
    click.echo(f"  {'triton':<16} not made yet; the first verification makes it (once, some minutes)")
    return True
