"""A decoder as a plain graph, which Triton's `onnxruntime` backend serves as it serves any other.

One call reads some tokens and gives the scores of what may come after each, and the keys and values of all tokens so
far, which the client sends back with the next ones. It begins with a cache of length 0, for which both the protocol and
the backend have a place (an empty buffer: triton-inference-server/backend, `BackendInputCollector::ProcessTensor`).

A request of several sequences either begins them all, or adds one token to each: ONNX Runtime's `GroupQueryAttention`
refuses more on a CPU. What Triton puts together need not fit that, so it is packaged with `max_batch_size: 0`: requests
stay by themselves, and hold as many sequences as their client likes.

That is all of a language model on any Triton, for scoring texts and for short answers. The cache crosses the wire at
every token: for many conversations at once there is vLLM.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.samples import Samples
from model_repository.signature import Signature, TensorSpec
from stages.artifact import Artifact, link
from stages.errors import InputError
from stages.language.checkpoint import Checkpoint
from stages.language.quantise.onnx_decoder import GRAPH
from stages.language.runtime.genai import CONFIG
from stages.language.session import Tokens
from stages.onnx_model import write_model
from stages.runtime import Arrays, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["decoder_samples", "empty_cache", "next_cache", "triton_model"]

_TOKENS, _MASK, _SCORES = "input_ids", "attention_mask", "logits"
_PAST, _PRESENT = "past_key_values", "present"
_FIRST = f"{_PAST}.0.key"


def triton_model(checkpoint: Artifact, out: Path) -> Artifact:
    """Write the decoder of a checkpoint for ONNX Runtime GenAI as a model artifact into `out`, its tokenizer as assets.

    Inputs: `input_ids` [batch, sequence] int64, and for each layer N `past_key_values.N.key` and `….value` [batch,
    kv_heads, past, head_size] float32. Outputs: `logits` [batch, sequence, vocabulary] float32, `present.N.key` and
    `….value` [batch, kv_heads, past + sequence, head_size] float32.

    There is no attention mask: the sequences of a request have one length, and so have their caches. A shorter one may
    be filled up behind its end, since no token sees those after it, but is then not to be continued.

    Raises `InputError` if it is no such checkpoint, or if its graph takes what is not known here.
    """
    import onnx_ir

    about = Checkpoint.of(checkpoint)
    if about.runtime != "onnxruntime-genai":
        raise InputError(f"{checkpoint.path} is a checkpoint for {about.runtime}, not a decoder in ONNX")
    graph = onnx_ir.load(checkpoint.path / GRAPH)
    known = {_TOKENS, _MASK, *(tensor.name for tensor in _cache(_PAST, about, "past"))}
    if odd := [value.name or "" for value in graph.graph.inputs if value.name not in known]:
        raise InputError(f"{checkpoint.path / GRAPH} takes {', '.join(odd)}, which is not known here")
    _attend_to_all(graph.graph)
    with tempfile.TemporaryDirectory() as assets:
        for name in checkpoint.files:
            if not name.startswith(GRAPH) and name != CONFIG:
                link(checkpoint.path / name, Path(assets) / name)
        return write_model(
            graph,
            out,
            signature=_declare(graph.graph, about),
            task="text-generation",
            precision=about.precision,
            assets=Path(assets),
            made_from={"checkpoint": checkpoint},
        )


def empty_cache(signature: Signature, sequences: int) -> dict[str, NDArray[np.float32]]:
    """What `sequences` begin with: keys and values of no token."""
    return {
        tensor.name: np.zeros((sequences, int(tensor.shape[1]), 0, int(tensor.shape[3])), dtype=np.float32)
        for tensor in signature.inputs
        if tensor.name.startswith(_PAST)
    }


def next_cache(answers: Arrays) -> dict[str, NDArray[Any]]:
    """What goes with the next tokens: the keys and values of all tokens so far, from the answer to the last ones."""
    return {name.replace(_PRESENT, _PAST, 1): array for name, array in answers.items() if name.startswith(_PRESENT)}


def decoder_samples(model: Artifact, tokens: Tokens, cached: int) -> Samples:
    """Inputs of a decoder to verify it with, made of `tokens` ([sequences, length]).

    The token after the first `cached` of each, with those in the cache; where `cached` is 0, their beginnings, of all
    lengths from one token on.

    Raises `InputError` if the sequences are no longer than what should be cached.
    """
    count, length = tokens.shape
    if not 0 <= cached < length:
        raise InputError(f"{cached} of {length} tokens cannot be in a cache: at least one is to be read")
    with open_session(model) as session:
        cache = empty_cache(session.signature, count)
        if cached:
            cache = next_cache(session({_TOKENS: tokens[:, :cached], **cache}))
    ends = [cached + 1] * count if cached else [1 + index % length for index in range(count)]
    read = [row[cached:end] for row, end in zip(tokens, ends, strict=True)]
    return Samples({_TOKENS: read, **{name: list(array) for name, array in cache.items()}}, {_TOKENS: 0.0})


def _attend_to_all(graph: ir.Graph) -> None:
    """Let the graph make its attention mask itself: ones over the cache and the new tokens."""
    import onnx_ir

    values = {value.name: value for value in graph.inputs}
    mask, tokens = values[_MASK], values[_TOKENS]
    made: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        made.append(onnx_ir.node(operator, inputs, attributes, outputs=[onnx_ir.val(f"{_MASK}_{len(made)}")]))
        return made[-1].outputs[0]

    batch = add("Shape", [tokens], start=0, end=1)
    total = add("Add", [add("Shape", [tokens], start=1, end=2), add("Shape", [values[_FIRST]], start=2, end=3)])
    ones = add("ConstantOfShape", [add("Concat", [batch, total], axis=0)], value=onnx_ir.tensor(np.ones(1, np.int64)))
    mask.replace_all_uses_with(ones)
    graph.inputs.remove(mask)
    graph.insert_before(graph[0], made)


def _declare(graph: ir.Graph, about: Checkpoint) -> Signature:
    """Name the axes of inputs and outputs, and fix the sizes that the builder leaves open."""
    import onnx_ir

    scores = TensorSpec(name=_SCORES, dtype="float32", shape=("batch", "sequence", about.vocabulary))
    tokens = TensorSpec(name=_TOKENS, dtype="int64", shape=("batch", "sequence"))
    wanted = {
        tensor.name: tensor
        for tensor in (tokens, scores, *_cache(_PAST, about, "past"), *_cache(_PRESENT, about, "total"))
    }
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape(wanted[value.name or ""].shape)
    return Signature(
        inputs=tuple(wanted[value.name or ""] for value in graph.inputs),
        outputs=tuple(wanted[value.name or ""] for value in graph.outputs),
    )


def _cache(prefix: str, about: Checkpoint, length: str) -> Iterator[TensorSpec]:
    attention = about.attention
    for layer in range(attention.layers):
        for part in ("key", "value"):
            shape = ("batch", attention.kv_heads, length, attention.head_size)
            yield TensorSpec(name=f"{prefix}.{layer}.{part}", dtype="float32", shape=shape)
