"""A small Llama that was trained here, so that quality can be lost, and what its tests read and begin with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from planting import plant_outliers

from stages.artifact import Artifact

_SCRIPT = Path(__file__).parents[2] / "examples" / "tiny-llama" / "train.py"


@pytest.fixture(scope="session")
def tiny_llama_script() -> ModuleType:
    """The example's script as a module; it lies in no package."""
    specification = importlib.util.spec_from_file_location("example_tiny_llama_train", _SCRIPT)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


@pytest.fixture(scope="session")
def tiny_llama_data(tiny_llama_script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `evaluation.jsonl` and `calibration.jsonl` (`text`: whole files), and `checkpoint/`.

    The example's own training, of a model of 850,000 parameters: hidden 128, 3 layers, 4 heads and 2 KV heads of 32,
    1,024 tokens, made for 256 positions. Its perplexity on held-out files is about 65; of unigrams it is 369.
    """
    out = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama_script.train(
        out,
        vocabulary=1024,
        hidden=128,
        layers=3,
        heads=4,
        kv_heads=2,
        intermediate=384,
        sequence=256,
        batch=2,
        steps=600,
        learning_rate=2.5e-3,
        bfloat16=False,
        threads=1,
    )
    return out


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_data: Path) -> Path:
    """The trained checkpoint's directory. Not to be changed."""
    return tiny_llama_data / "checkpoint"


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The trained checkpoint as an artifact: the baseline of a run."""
    from stages.language.adopt import AdoptOptions, adopt
    from stages.source import locate

    source = locate(str(tiny_llama))
    assert source is not None
    return adopt(source=source, options=AdoptOptions(), out=tmp_path_factory.mktemp("tiny_checkpoint"))


@pytest.fixture(scope="session")
def planted_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint with outliers in the weights of its first block (see `planting`); it computes the same."""
    return plant_outliers(tiny_llama, tmp_path_factory.mktemp("planted_llama") / "checkpoint")
