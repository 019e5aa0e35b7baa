"""llm-compressor, called so that it does as it is told: offline, in the given order, and without a word on stdout.

What its 0.14 does of itself, and is kept from here:

- it draws the windows in random order, unseeded, so that two runs give different weights. A `DataLoader` of our own is
  taken as it is: the same windows give the same bytes;
- its import sends loguru's messages to stdout;
- it adds 1 to the weights of Gemma's norms and those like them, and takes it away again, in their own dtype: bfloat16
  then keeps two digits of what was there;
- `save_pretrained` of the tokenizer adds to its configuration where it was loaded from, and that of the model adds
  the recipe with Python objects in it. The files beside the weights are the model's own here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.windows import Windows
from stages.artifact import Artifact, link
from stages.errors import InputError, RequirementError, StageError
from stages.language.checkpoint import Checkpoint
from stages.progress import Progress

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel

__all__ = ["apply", "calibration_windows", "load", "require_library", "save"]

_CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".safetensors.index.json")


@functools.cache
def require_library() -> None:
    """Import llm-compressor, with its messages on stderr. Raises `RequirementError` if it is not installed."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it already speaks while it is imported
            importlib.import_module("llmcompressor")
            loguru = importlib.import_module("loguru")
    except ImportError as error:
        raise RequirementError(
            f"llm-compressor is not installed ({error}): `pip install 'optimize-pipeline[llm]'`"
        ) from error
    loguru.logger.remove()
    loguru.logger.add(
        lambda message: sys.stderr.write(message),
        format="{level}: {message}",
        level="WARNING",
        filter=lambda record: record["level"].name != "METRIC",  # its timings, above WARNING in rank
    )


def calibration_windows(model: Artifact, data: Artifact) -> Windows:
    """The windows of `data`.

    Raises `InputError` if they are not of this model's tokenizer, or longer than it can read.
    """
    about, windows = Checkpoint.of(model), Windows.load(data.path)
    if not len(windows):
        raise InputError(f"{data.path} holds no window of calibration text")
    if (largest := int(windows.tokens.max())) >= about.vocabulary:
        raise InputError(
            f"the calibration text holds token {largest}, and the model knows {about.vocabulary}: "
            "it was prepared with another tokenizer"
        )
    if windows.length > about.positions:
        raise InputError(
            f"the windows of calibration text are {windows.length} tokens long, and the model reads {about.positions}"
        )
    return windows


def load(model: Artifact) -> PreTrainedModel:
    """The network with its weights in their own dtype, on the CPU.

    llm-compressor moves one layer after the other to a GPU if there is one.
    """
    from stages.language.runtime.preload import transformers

    network: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        model.path,
        dtype="auto",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=Checkpoint.of(model).trust_remote_code,
    )
    return network


def apply(
    network: PreTrainedModel,
    modifier: Modifier,
    windows: Windows | None,
    progress: Progress,
    note: str,
    *,
    smoothed: Container[str] = (),
) -> None:
    """Let one modifier change `network`, with the windows in their order, one at a time.

    Vectors (the weights of norms, biases) are those of before then, but for those of the modules `smoothed`.

    Raises `StageError` if the network's forward pass cannot be cut into layers (llm-compressor traces it symbolically),
    if GPTQ gave a layer up, or if the GPU's memory does not suffice.
    """
    import torch
    from compressed_tensors.offload import update_offload_parameter
    from llmcompressor import oneshot
    from torch.fx.proxy import TraceError
    from torch.utils.data import DataLoader

    loader = None
    if windows is not None:
        rows = torch.from_numpy(windows.tokens)
        loader = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=1)
    given_up: list[str] = []
    vectors = {name: value.detach().clone() for name, value in network.named_parameters() if value.ndim == 1}
    try:
        oneshot(
            model=network,
            # Anything but a name or None: with these it looks for a tokenizer, for which there is no use here.
            processor=object(),
            recipe=[modifier, _observer(network, modifier, progress, note, given_up)],
            dataset=loader,
            pipeline=None,  # the one that suits the modifiers, both in the same one
        )
    except TraceError as error:
        raise StageError(f"llm-compressor cannot cut {type(network).__name__} into its layers: {error}") from error
    except torch.OutOfMemoryError as error:
        raise StageError(f"the GPU's memory does not suffice, and shorter windows need less: {error}") from error
    if given_up:
        raise StageError(
            f"GPTQ could not invert the second moments of the inputs of {len(given_up)} layers ({given_up[0]}, …); "
            "take more calibration text or more damping"
        )
    for name, before in vectors.items():
        owner, _, part = name.rpartition(".")
        module = network.get_submodule(owner)
        if owner not in smoothed and not torch.equal(getattr(module, part).cpu(), before.cpu()):
            update_offload_parameter(module, part, before)


def save(network: PreTrainedModel, model: Artifact, out: Path) -> None:
    """Write the compressed network into `out`, with the other files of `model` (tokenizer, generation) as they are.

    `network` has no weights after that.
    """
    from llmcompressor import reset_session

    network.save_pretrained(out)
    # What it traced stays in tables of torch.fx, and the network with it: the weights at least must go.
    reset_session()
    for module in network.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            delattr(module, name)
    kept = {_CONFIG, *(file.name for file in out.glob("*.safetensors*"))}
    for file in out.iterdir():
        if file.name not in kept:
            file.unlink()
    for name in model.files:
        if name != _CONFIG and not name.endswith(_WEIGHTS):
            link(model.path / name, out / name)


def _observer(
    network: PreTrainedModel, modifier: Modifier, progress: Progress, note: str, given_up: list[str]
) -> Modifier:
    """A modifier that changes nothing: it says how many layers `modifier` is through, and where GPTQ only rounded."""
    from llmcompressor.core import Event, State
    from llmcompressor.modifiers import Modifier
    from llmcompressor.modifiers.gptq import GPTQModifier

    parts = network.config.get_text_config().num_hidden_layers + 1  # what comes before the first layer is one, too
    through = 0

    class Observer(Modifier):  # type: ignore[misc]  # the library is read without its types
        def on_initialize(self, state: State, **kwargs: Any) -> bool:
            progress.update(note, 0, parts)
            return True

        def on_sequential_epoch_end(self, state: State, event: Event, **kwargs: Any) -> None:
            nonlocal through
            through += 1
            progress.update(note, through, parts)

        def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
            if isinstance(modifier, GPTQModifier):
                # It only logs them, after this, and forgets.
                given_up.extend(modifier._rtn_fallback_module_names)

    return Observer()
