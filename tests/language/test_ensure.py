"""What a quantised checkpoint is held to: each promise is broken here once, and each time that is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import as_artifact, text_tokens, window_data

from stages.artifact import Artifact
from stages.errors import StageError
from stages.language.quantise.ensure import Promise, ensure_quantised
from stages.language.quantise.linear_layers import linear_layers
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant

pytest.importorskip("gptqmodel")

LAYER = "model.layers.1.mlp.down_proj"
KEPT = "model.layers.0.self_attn.o_proj"

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Artifact:
    return as_artifact(tiny_llama)


@pytest.fixture(scope="module")
def quantised(model: Artifact, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    data = window_data(tmp_path_factory.mktemp("text") / "data", text_tokens(tiny_llama, 256), 64)
    options = parse_variant({"type": "gptq", "exclude": [KEPT]})
    return quantise_checkpoint(model=model, options=options, out=tmp_path_factory.mktemp("gptq"), data=data)


@pytest.fixture(scope="module")
def promise(model: Artifact) -> Promise:
    layers = linear_layers(model)
    return Promise(
        form="gptq",
        layers={name: 4 for name in layers.shapes if name != KEPT},
        shapes=layers.shapes,
        group_size=128,
        config={"bits": 4, "group_size": 128, "desc_act": False},
    )


@pytest.fixture
def copy(quantised: Artifact, tmp_path: Path) -> Path:
    """The quantised checkpoint's files, to be changed."""
    return Path(shutil.copytree(quantised.path, tmp_path / "copy"))


def _as_artifact(path: Path, like: Artifact) -> Artifact:
    return Artifact.of_files(path, "checkpoint", like.metadata)


def _change(path: Path, change: Callable[[Tensors], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    change(tensors)
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _set(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.unlink()  # it may be a link to the original's
    path.write_text(json.dumps(content))


def test_what_was_made_is_let_pass(model: Artifact, quantised: Artifact, promise: Promise) -> None:
    ensure_quantised(model, quantised, promise)


def _not_quantised(tensors: Tensors) -> None:
    import torch

    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"{LAYER}.{part}"]
    tensors[f"{LAYER}.weight"] = torch.zeros(128, 384)


def _wrong_shape(tensors: Tensors) -> None:
    tensors[f"{LAYER}.qweight"] = tensors[f"{LAYER}.qweight"][:24].contiguous()


def _other_values(tensors: Tensors) -> None:
    tensors["model.norm.weight"][0] += 0.01


def _kept_layer_changed(tensors: Tensors) -> None:
    tensors[f"{KEPT}.weight"] *= 1.01


def _something_new(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.extra"] = tensors["model.norm.weight"].clone()


def _missing(tensors: Tensors) -> None:
    del tensors["model.norm.weight"]


def _no_numbers(tensors: Tensors) -> None:
    tensors[f"{LAYER}.scales"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_not_quantised, rf"1 of 20 layers .* {LAYER} holds weight .* instead of g_idx I32\[384\], qweight"),
        (_wrong_shape, rf"{LAYER} holds .*qweight I32\[24, 128\]"),
        (_other_values, r"model\.norm\.weight is not to be quantised, and has other values"),
        (_kept_layer_changed, rf"{KEPT}\.weight is not to be quantised, and has other values"),
        (_something_new, r"mlp\.extra, which neither the original has"),
        (_missing, r"does not load back .*lack model\.norm\.weight"),
        (_no_numbers, r"scores with which .* answers are not finite"),
    ],
)  # fmt: skip
def test_weights_that_are_not_as_promised_are_found(
    change: Callable[[Tensors], None],
    message: str,
    model: Artifact,
    quantised: Artifact,
    promise: Promise,
    copy: Path,
) -> None:
    _change(copy, change)

    with pytest.raises(StageError, match=message):
        ensure_quantised(model, _as_artifact(copy, quantised), promise)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda said: said["quantization_config"].update(group_size=64), "says 64 of group_size"),
        ("config.json", lambda said: said["quantization_config"].pop("bits"), "says nothing of bits, and 4"),
        ("config.json", lambda said: said["rope_parameters"].update(rope_theta=5e5), "rope_parameters in .*500000"),
        ("config.json", lambda said: said.update(pad_token_id=7), "pad_token_id in .* is 7"),
        ("tokenizer_config.json", lambda said: said.update(eos_token="<s>"), "differs .* in its special tokens"),
        ("tokenizer.json", lambda said: said.update(post_processor=None), "in the tokens of a text: .* at 0"),
        ("tokenizer.json", lambda said: said["model"].update(merges=[]), "in the tokens of a text"),
    ],
)  # fmt: skip
def test_files_that_say_something_else_are_found(
    file: str,
    change: Callable[[dict[str, Any]], Any],
    message: str,
    model: Artifact,
    quantised: Artifact,
    promise: Promise,
    copy: Path,
) -> None:
    _set(copy / file, change)

    with pytest.raises(StageError, match=message):
        ensure_quantised(model, _as_artifact(copy, quantised), promise)


def test_another_chat_template_is_found(model: Artifact, quantised: Artifact, promise: Promise, copy: Path) -> None:
    template = copy / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    template.write_text(f"{text} ")

    with pytest.raises(StageError, match="in its chat template"):
        ensure_quantised(model, _as_artifact(copy, quantised), promise)


def test_weights_that_are_no_smaller_are_found(model: Artifact, promise: Promise) -> None:
    nothing = Promise(form="gptq", layers={}, shapes=promise.shapes)

    with pytest.raises(StageError, match="the weights are no smaller"):
        ensure_quantised(model, model, nothing)


def test_values_that_do_not_fit_the_dtype_are_found(
    model: Artifact, quantised: Artifact, promise: Promise, copy: Path, tmp_path: Path
) -> None:
    """Cast to float16, large values become infinite, as they would in the original."""
    before = Path(shutil.copytree(model.path, tmp_path / "before"))
    _change(before, lambda tensors: tensors["model.norm.weight"].mul_(1e6))

    def cast(tensors: Tensors) -> None:
        tensors["model.norm.weight"] = (tensors["model.norm.weight"] * 1e6).half()

    _change(copy, cast)
    with pytest.raises(StageError, match=r"model\.norm\.weight in .* is not finite"):
        ensure_quantised(_as_artifact(before, model), _as_artifact(copy, quantised), promise)


def test_tensors_that_may_change_may(model: Artifact, quantised: Artifact, promise: Promise, copy: Path) -> None:
    _change(copy, _other_values)
    lenient = Promise(
        form=promise.form,
        layers=promise.layers,
        shapes=promise.shapes,
        group_size=128,
        may_change=lambda name: name == "model.norm.weight",
    )

    ensure_quantised(model, _as_artifact(copy, quantised), lenient)


def test_layers_of_other_bits_and_groups_are_found(model: Artifact, quantised: Artifact, promise: Promise) -> None:
    for bits, group_size in ((8, 128), (4, 64)):
        other = Promise("gptq", dict.fromkeys(promise.layers, bits), promise.shapes, group_size)
        with pytest.raises(StageError, match="20 of 20 layers"):
            ensure_quantised(model, quantised, other)


def test_forms_are_told_apart(model: Artifact, quantised: Artifact, promise: Promise) -> None:
    for form in ("awq", "pack-quantized", "int-quantized", "float-quantized"):
        with pytest.raises(StageError, match="20 of 20 layers"):
            ensure_quantised(model, quantised, Promise(form, promise.layers, promise.shapes, 128))
