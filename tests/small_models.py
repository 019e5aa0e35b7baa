"""Small models with random weights, saved as their owners would save them: for form, not for accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(59))]


def save_text_model(path: Path, head: str, *, pooled: list[dict[str, Any]] | None = None, **config: Any) -> Path:
    """A one-layer BERT of class `head` with a tokenizer; `pooled` makes it a sentence-transformers directory."""
    import torch
    import transformers

    torch.manual_seed(1)
    settings = {
        "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 40, **config,
    }  # fmt: skip
    model = getattr(transformers, head)(transformers.BertConfig(**settings))
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    for position, module in enumerate(pooled or []):
        folder = path / module["path"]
        folder.mkdir(exist_ok=True)
        if module.get("config"):
            (folder / "config.json").write_text(json.dumps(module["config"]))
        module["idx"], module["name"] = position, str(position)
    if pooled:
        (path / "modules.json").write_text(json.dumps([{k: v for k, v in m.items() if k != "config"} for m in pooled]))
    return path


def sentence_module(kind: str, path: str = "", **config: Any) -> dict[str, Any]:
    """An entry of `modules.json`, with the configuration that lies in its folder."""
    return {"type": f"sentence_transformers.models.{kind}", "path": path, "config": config}


def save_image_model(path: Path, family: str) -> Path:
    """A tiny ViT, ResNet or ConvNeXt classifier for 32 × 32 pixels and 4 classes."""
    import torch
    import transformers

    torch.manual_seed(1)
    labels = {"id2label": {i: f"class {i}" for i in range(4)}, "label2id": {f"class {i}": i for i in range(4)}}
    if family == "vit":
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32,
            patch_size=8, **labels,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
    elif family == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels
        )
        model = transformers.ResNetForImageClassification(config)
    else:
        config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=4, **labels)
        model = transformers.ConvNextForImageClassification(config)
    model.save_pretrained(path)
    size = {"shortest_edge": 32} if family == "convnext" else {"height": 32, "width": 32}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True, "do_normalize": True}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def save_onnx(path: Path, *, external: str | None = None, width: int = 600) -> Path:
    """`y = relu(x · w)` for x [batch, 4]; the weights beside the file if `external` names where."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((4, width), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=external is not None, location=external, size_threshold=0)
    return path
