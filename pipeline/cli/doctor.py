"""`optimize doctor`: what this machine can and cannot do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import click

__all__ = ["doctor"]


@click.command(short_help="What this machine can and cannot do.")
@click.option("--store", metavar="DIR", type=click.Path(path_type=Path), help="Where finished steps are kept.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def doctor(store: Path | None, debug: bool) -> None:
    """Tell what is installed, what is missing, and what that means. Exit code 5 if `optimize run` cannot work."""
    from pipeline.account import LIBRARIES
    from pipeline.job import default_store
    from pipeline.store import library_versions
    from stages.host import host_fingerprint
    from stages.variants import VARIANTS

    wrong = 0
    click.echo("this machine")
    for key, value in host_fingerprint().items():
        click.echo(f"  {key:<14} {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    click.echo("libraries")
    for name, version in library_versions(LIBRARIES).items():
        if version == "absent":
            wrong += 1
            version = "MISSING: pip install it with the project's constraints file"
        click.echo(f"  {name:<14} {version}")
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if library_versions((name,))[name] != "absent"]
    if len(both) == 2:
        wrong += 1
        click.echo("  onnxruntime and onnxruntime-gpu are both installed; they overwrite each other: keep one")
    click.echo("places")
    path = store or default_store()
    free = shutil.disk_usage(path if path.exists() else Path.home()).free
    click.echo(f"  {'store':<14} {path} ({free / 1e9:.0f} GB free)")
    click.echo(f"  {'MLflow':<14} {os.environ.get('MLFLOW_TRACKING_URI', 'sqlite:///mlflow.db in the current folder')}")
    click.echo("targets")
    click.echo(f"  {'cpu':<14} {', '.join(name for name, variant in VARIANTS.items() if 'cpu' in variant.targets)}")
    click.echo(f"  {'cuda':<14} not supported yet")
    click.echo(f"  {'tensorrt':<14} not supported yet")
    click.echo("server")
    wrong += not _server()
    if wrong:
        sys.exit(5)


def _server() -> bool:
    """Tell whether the Triton that verifies releases is there or can be made."""
    from model_repository.environment import existing_environment

    found = existing_environment()
    if found is not None:
        click.echo(f"  {'triton':<14} {found.version} in {found.path}")
        return True
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        click.echo(f"  {'triton':<14} cannot be made: Python's venv is missing (Debian: apt install python3-venv)")
        return False
    click.echo(f"  {'triton':<14} not made yet; the first verification makes it (once, some minutes)")
    return True
