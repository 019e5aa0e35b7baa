"""GPTQModel, called so that it does as it is told: offline, without compiling, and without a word on stdout.

What its 7.6 does of itself, and is kept from here:

- On a machine of one or two cores its pool of loaders asks for more workers than there are, and nothing starts.
- It compiles a packer in C++ into the user's home at the first use, which takes a compiler and half a minute. The one
  in Python that it falls back to writes the same bits, in 4 s for 100 million weights instead of 1.
- It writes a tokenizer of its own (a class that does not exist, another padding token), samples in
  `generation_config.json`, a padding token in `config.json`, and where its temporary files lay. The files beside the
  weights are the model's own here.
- It imports datasets and OpenVINO, of which nothing is used here, and which take 140 MB.
- For AWQ's clipping it looks at every n-th token. Where n and the windows' length have a common divisor, these are
  more than their share of first tokens, whose activations are like no others, and in the worst case nothing else. It
  also keeps the products of all these tokens with 256 rows of a matrix: 3 GB for 11,008 inputs and its 512 tokens.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibration.windows import Windows
from stages.artifact import Artifact, link
from stages.errors import InputError, RequirementError, StageError
from stages.language.checkpoint import Checkpoint
from stages.language.quantise.linear_layers import LinearLayers, linear_layers
from stages.language.quantise.one_shot import calibration_windows
from stages.language.shape import read_config
from stages.progress import Progress

__all__ = ["LIBRARY", "Job", "prepare", "quantise", "rules_to_leave_out"]

LIBRARY = "gptqmodel"

_NEEDED = (LIBRARY, "optimum", "accelerate")
"""optimum and accelerate are what transformers loads the result back with."""

_UNUSED = ("datasets", "openvino")
_SHORTEST = 10
"""Tokens. It leaves out shorter sequences, with a warning."""

_CLIP_TOKENS = 128
"""At least so many, and fewer than twice as many."""

_WORD = 32
"""Bits. Its packer takes whole words only, along the inputs and along the outputs."""

_WEIGHTS = (".safetensors", ".safetensors.index.json")

_HELD_AS = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""What servers call the layers that they hold as one."""

_NOTES = {
    "act_group_aware", "damp_auto_increment", "damp_percent", "mse", "quantizer", "static_groups", "true_sequential",
    "uri",
}  # fmt: skip
"""What is kept of its notes on how it was done. The others say where, and with what memory."""


@dataclass(frozen=True)
class Job:
    """What is to be done: `quantised` are the layers to quantise, `excluded` those that stay as they are."""

    model: Artifact
    windows: Windows
    layers: LinearLayers
    excluded: tuple[str, ...]
    quantised: tuple[str, ...]


def prepare(
    model: Artifact,
    data: Artifact,
    exclude: Iterable[str],
    *,
    group_size: int | None,
    outputs: int = _WORD,
    together: Callable[[LinearLayers, tuple[str, ...]], tuple[str, ...]] = lambda layers, names: names,
) -> Job:
    """Find out, before anything takes long, whether a model can be quantised, and what of it.

    `group_size`: None is one scale for each output. `outputs`: what the number of a layer's outputs must be a multiple
    of. `together` says which layers must stay as they are if those that servers hold as one do.

    Raises `RequirementError` if GPTQModel is not installed; `InputError` if the model is quantised, a mixture of
    experts, or of an architecture that transformers does not know, if a layer cannot be cut into groups, if `exclude`
    names no layer or leaves none, or if the data are not for this model.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RequirementError(f"{' and '.join(missing)} is not installed: `pip install 'optimize-pipeline[llm]'`")
    if (done := Checkpoint.of(model).quantisation) is not None:
        raise InputError(f"{model.path} is quantised already ({done.format}): give the model that it was made from")
    layers = linear_layers(model)
    if layers.stacks:
        raise InputError(
            f"{model.path} is a mixture of experts ({layers.stacks[0]}), which GPTQModel writes under names that "
            "transformers does not find again"
        )
    excluded = together(layers, layers.chosen(exclude, "exclude"))
    quantised = tuple(name for name in layers.shapes if name not in excluded)
    if not quantised:
        raise InputError(f"nothing is left to quantise of the {len(layers.shapes)} linear layers in {model.path}")
    layers.ensure_divisible(group_size or _WORD, quantised, _smaller_group(layers, quantised, group_size))
    for name in quantised:
        if layers.shapes[name][0] % outputs:
            raise InputError(
                f"{name} has {layers.shapes[name][0]} outputs, and GPTQModel takes multiples of {outputs}: exclude it"
            )
    windows = calibration_windows(model, data)
    if windows.length < _SHORTEST:
        raise InputError(
            f"the windows of calibration text are {windows.length} tokens long, and GPTQModel takes {_SHORTEST} or more"
        )
    return Job(model, windows, layers, excluded, quantised)


def _smaller_group(layers: LinearLayers, names: tuple[str, ...], group_size: int | None) -> str:
    sizes = (size for size in (128, 64, 32) if size < (group_size or 0))
    fitting = next((size for size in sizes if not any(layers.shapes[name][1] % size for name in names)), None)
    return f"a group_size of {fitting} suits all" if fitting else "exclude what cannot be cut"


def rules_to_leave_out(names: Iterable[str]) -> dict[str, dict[str, Any]] | None:
    """What GPTQModel, vLLM and SGLang understand by `dynamic`: patterns of layers that are not quantised.

    The latter two look for a layer under the name by which they hold several as one.
    """
    rules = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        last = f"(?:{last}|{_HELD_AS[last]})" if last in _HELD_AS else re.escape(last)
        rules[f"-:^{re.escape(parent)}\\.{last}$"] = dict[str, Any]()
    return rules or None


def quantise(
    job: Job,
    settings: Callable[[Any, Mapping[str, Any]], Any],
    out: Path,
    progress: Progress,
    *,
    dtype: str,
    also: Mapping[str, Any],
) -> None:
    """Let GPTQModel quantise, and write the checkpoint into `out`.

    On a GPU if there is one, block by block; on the CPU otherwise. `settings` makes its configuration from its module
    and from what is the same for all. `dtype` is that of what is not quantised. `also` goes into `quantization_config`,
    for readers that look there.

    Raises `InputError` if it does not know the architecture or does not quantise one of the layers, and `StageError` if
    it fails.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".gptqmodel-") as folder, _library() as library:
        scratch, made = Path(folder) / "layers", Path(folder) / "made"
        # AWQ's losses by layer would go to `logs` in whatever directory this runs in.
        importlib.import_module(f"{LIBRARY}.looper.loop_processor")._PROJECT_LOG_DIR = Path(folder) / "logs"  # type: ignore[attr-defined]
        config = settings(library, {"offload_to_disk_path": str(scratch)})
        _run(library, job, config, made, progress, dtype)
        progress.update("writing the checkpoint")
        for file in made.glob("*.safetensors*"):
            file.rename(out / file.name)
        written = {**read_config(made)["quantization_config"], **also}
    written["meta"] = {key: value for key, value in written["meta"].items() if key in _NOTES and value is not None}
    for name in job.model.files:
        if name != "config.json" and not name.endswith(_WEIGHTS):
            link(job.model.path / name, out / name)
    before = read_config(job.model.path)
    named = "torch_dtype" if "torch_dtype" in before else "dtype"
    _write_json(out / "config.json", {**before, named: dtype, "quantization_config": written})
    _write_json(out / "quantize_config.json", written)  # what AutoGPTQ and early readers of its format look for


def _run(library: Any, job: Job, config: Any, made: Path, progress: Progress, dtype: str) -> None:
    import torch

    about = Checkpoint.of(job.model)
    if about.model_type not in importlib.import_module(f"{LIBRARY}.models.auto").SUPPORTED_MODELS:
        raise InputError(
            f"GPTQModel {version(LIBRARY)} does not know the architecture {about.model_type!r}; "
            "w4a16 and int8-w8a8 are made by llm-compressor, which knows others"
        )
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.windows.tokens.tolist()]
    count = about.attention.layers

    def through(layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:  # then it is called from another thread
            progress.update("quantising the blocks", layer_idx + 1, count)

    progress.update("quantising the blocks", 0, count)
    try:
        loaded = library.GPTQModel.load(
            str(job.model.path), config, dtype=getattr(torch, dtype), trust_remote_code=about.trust_remote_code
        )
        _ensure_known(job, loaded)
        loaded.layer_callback = through
        # Its own choice for AWQ takes a GPU, though all that is chosen here is what packs the integers.
        backend = library.BACKEND.AWQ_TORCH if isinstance(config, library.AWQConfig) else library.BACKEND.AUTO
        with _clipping_on(_clip_tokens(len(job.windows), job.windows.length)):
            loaded.quantize(rows, batch_size=1, calibration_sort=None, backend=backend)
        loaded.save(str(made))
    except torch.OutOfMemoryError as error:
        raise StageError(f"the GPU's memory does not suffice, and shorter windows need less: {error}") from error
    except (ValueError, RuntimeError, AssertionError) as error:
        raise StageError(f"GPTQModel could not quantise {job.model.path} ({type(error).__name__}: {error})") from error


def _ensure_known(job: Job, loaded: Any) -> None:
    """Raises `InputError` if its table of the architecture lacks one of the layers."""
    table = loaded.simple_layer_modules(loaded.model.config, loaded.quantize_config)
    endings = tuple(f".{name}" for part in table for name in part)
    unknown = [name for name in job.quantised if not name.endswith(endings)]
    if unknown:
        more = f" and {len(unknown) - 1} others" if unknown[1:] else ""
        raise InputError(f"GPTQModel does not quantise {unknown[0]}{more} of this architecture: exclude them")


def _clip_tokens(windows: int, length: int) -> int:
    """How many tokens clipping is to look at so that they come from all positions of the windows."""
    tokens = windows * length
    counts = range(_CLIP_TOKENS, 2 * _CLIP_TOKENS)
    return next((count for count in counts if math.gcd(max(1, tokens // count), length) == 1), _CLIP_TOKENS)


@contextlib.contextmanager
def _clipping_on(tokens: int) -> Iterator[None]:
    processor: Any = importlib.import_module(f"{LIBRARY}.looper.awq_processor").AWQProcessor
    before = processor._compute_best_clip
    processor._compute_best_clip = functools.partialmethod(before, n_sample_token=tokens)
    try:
        yield
    finally:
        processor._compute_best_clip = before


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """The module, while what it says goes to stderr and nothing is asked of a hub."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    if (os.cpu_count() or 1) <= 2:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            library = _imported()
            speech: Any = importlib.import_module(f"{LIBRARY}.utils.logger")
            speech.setup_logger().setLevel("WARN")
            # Where there is no terminal it would print a line for every move of a bar.
            speech._suppress_live_renderables = lambda: True
            yield library
    finally:
        constants.HF_HUB_OFFLINE = before


def _imported() -> Any:
    importlib.import_module("stages.language.runtime.preload")  # transformers, without what it does not need
    importlib.import_module("transformers.utils").is_datasets_available()  # it remembers what it saw first
    hidden = [name for name in _UNUSED if name not in sys.modules and LIBRARY not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # an import of it fails, and it goes without
    try:
        return importlib.import_module(LIBRARY)
    finally:
        for name in hidden:
            del sys.modules[name]


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
