"""A checkpoint's own tokenizer, and tokens as the inputs of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.inputs import InputSpec

__all__ = ["TextTokenizer", "cut_texts", "has_tokenizer", "load_tokenizer", "positions", "token_inputs"]

_DEFAULT_MAX_LENGTH = 512
_NO_LIMIT = 1_000_000  # the library writes 1e30 for "not known"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# In these architectures position ids start after the padding id, so that many positions are never used.
_OFFSET_POSITIONS = frozenset(
    {"bert-generation-roberta", "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta",
     "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)  # fmt: skip


@dataclass(frozen=True)
class TextTokenizer:
    """A `tokenizers.Tokenizer` with what the files beside it say of its use.

    `max_length` is in tokens, special ones included. `prompts` are what sentence-transformers puts before a text, by
    the kind of text (`query`, `document`, `""` for any other).
    """

    backend: Any
    max_length: int
    pad_id: int
    mask_token: str | None = None
    lowercase: bool = False
    truncation_side: Literal["left", "right"] = "right"
    prompts: Mapping[str, str] = field(default_factory=dict)

    def encode(
        self,
        texts: Sequence[Any],
        *,
        truncate: Literal["longest_first", "only_second"] = "longest_first",
        words: bool = False,
    ) -> list[Any]:
        """The `tokenizers.Encoding` of texts, pairs of texts or (with `words`) lists of words, cut to `max_length`."""
        self.backend.enable_truncation(self.max_length, strategy=truncate, direction=self.truncation_side)
        if self.lowercase:
            texts = [_lower(text) for text in texts]
        if (
            words
            and self.backend.pre_tokenizer is not None
            and b"ByteLevel" in self.backend.pre_tokenizer.__getstate__()
        ):
            # Byte-level BPE keeps the space before a word in its token; given word by word it would be lost.
            texts = [[f" {word}" for word in sentence] for sentence in texts]
        encodings: list[Any] = self.backend.encode_batch(list(texts), is_pretokenized=words)
        return encodings

    def prompted(self, texts: Sequence[str], kind: str = "") -> list[str]:
        """The texts with the prompt that the model was trained with before each, if it has one."""
        prompt = self.prompts.get(kind, "")
        return [prompt + text for text in texts] if prompt else list(texts)

    def token_id(self, token: str | None) -> int | None:
        found: int | None = None if token is None else self.backend.token_to_id(token)
        return found


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of a tokenizer."""
    return any((directory / name).is_file() for name in _VOCABULARIES)


def load_tokenizer(directory: Path, max_length: int | None = None) -> TextTokenizer:
    """The tokenizer of a checkpoint's directory.

    `tokenizer.json` is read by the library `tokenizers` alone, in a hundredth of the time that importing transformers
    takes; a directory with older files goes through `transformers.AutoTokenizer`, which converts them.

    The most tokens a text may have is the least of `model_max_length` (tokenizer_config.json), `max_seq_length`
    (sentence_bert_config.json) and the position embeddings (config.json), or 512 where nothing is said. `max_length`
    replaces it, up to the position embeddings. Raises `DataError` if there is no tokenizer or it is damaged, or
    `max_length` is more than the model has positions.
    """
    settings = _json(directory / "tokenizer_config.json")
    special = _json(directory / "special_tokens_map.json")
    config = _json(directory / "config.json")
    sentence = _json(directory / "sentence_bert_config.json")
    backend = _backend(directory)
    backend.no_padding()

    def token(name: str) -> str | None:
        found = settings.get(name) or special.get(name)
        content = found.get("content") if isinstance(found, dict) else found
        return content if isinstance(content, str) else None

    pad = token("pad_token")
    pad_id = backend.token_to_id(pad) if pad is not None else None
    if pad_id is None:
        # Padded positions are masked, so any valid id will do where the checkpoint has none of its own.
        pad_id = config.get("pad_token_id")
    side = settings.get("truncation_side")
    return TextTokenizer(
        backend=backend,
        max_length=_max_length(directory, settings, sentence, config, max_length),
        pad_id=pad_id if isinstance(pad_id, int) else 0,
        mask_token=token("mask_token"),
        lowercase=bool(sentence.get("do_lower_case", False)),
        truncation_side="left" if side == "left" else "right",
        prompts=_prompts(_json(directory / "config_sentence_transformers.json")),
    )


def positions(directory: Path) -> int | None:
    """How many tokens a checkpoint has position embeddings for; None if its `config.json` does not say."""
    return _positions(_json(directory / "config.json"))


def _positions(config: Mapping[str, Any]) -> int | None:
    found = config.get("max_position_embeddings")
    if isinstance(found, int) and config.get("model_type") in _OFFSET_POSITIONS:
        found -= config.get("pad_token_id", 1) + 1
    return found if isinstance(found, int) and found > 0 else None


def cut_texts(encodings: Sequence[Any]) -> int:
    """How many of the texts were longer than the tokenizer's `max_length`."""
    return sum(bool(encoding.overflowing) for encoding in encodings)


def _backend(directory: Path) -> Any:
    import tokenizers

    file = directory / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain `Exception`
            raise DataError(f"{file} is damaged: {error}") from error
    if not has_tokenizer(directory):
        raise DataError(
            f"the model has no tokenizer (no tokenizer.json in {directory}), so it cannot read text: put the "
            "tokenizer's files beside the model, or give its inputs as arrays in an .npz"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"the tokenizer in {directory} cannot be read: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{type(tokenizer).__name__} in {directory} cannot be turned into a tokenizer.json: give the model's "
            "inputs as arrays in an .npz"
        )
    return backend


def _max_length(
    directory: Path,
    settings: Mapping[str, Any],
    sentence: Mapping[str, Any],
    config: Mapping[str, Any],
    wanted: int | None,
) -> int:
    most = _positions(config)
    if wanted is not None:
        if most is not None and wanted > most:
            raise DataError(f"max_length is {wanted}, but the model has only {most} positions ({directory})")
        return wanted
    said = [settings.get("model_max_length"), sentence.get("max_seq_length"), most]
    limits = [int(limit) for limit in said if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
    return min(limits, default=_DEFAULT_MAX_LENGTH)


def _prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    given = {name: text for name, text in (settings.get("prompts") or {}).items() if isinstance(text, str)}
    default = given.get(settings.get("default_prompt_name") or "", "")
    # The names under which sentence-transformers looks for a document's prompt.
    document = next((given[name] for name in ("document", "passage", "corpus") if name in given), default)
    prompts = {"query": given.get("query", default), "document": document, "": default}
    return {kind: prompt for kind, prompt in prompts.items() if prompt}


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{file} should hold a JSON object")
    return document


def _lower(text: Any) -> Any:
    return text.lower() if isinstance(text, str) else type(text)(_lower(part) for part in text)


def token_inputs(
    encodings: Sequence[Any], specs: Sequence[InputSpec], tokenizer: TextTokenizer
) -> tuple[dict[str, list[NDArray[Any]]], dict[str, float]]:
    """The inputs of `Samples` and their padding, for the inputs that the model takes.

    Every array is [tokens] of the input's dtype. An input whose second axis is fixed gets all its samples padded to
    that size (and then nothing is left to pad in a batch). Raises `DataError` for an input that no tokenizer gives.
    """
    sources = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    fills = {"input_ids": tokenizer.pad_id, "attention_mask": 0, "token_type_ids": 0}
    inputs: dict[str, list[NDArray[Any]]] = {}
    padding: dict[str, float] = {}
    for spec in specs:
        if spec.name not in sources:
            raise DataError(
                f"the model takes an input {spec.name!r}, which a tokenizer does not give (it gives "
                f"{', '.join(sources)}): give all inputs as arrays in an .npz"
            )
        arrays = [np.array(getattr(encoding, sources[spec.name]), dtype=spec.numpy_dtype) for encoding in encodings]
        fixed = spec.sample_shape[0] if len(spec.sample_shape) == 1 else None
        if isinstance(fixed, int):
            arrays = [_padded(array, fixed, fills[spec.name], spec.name) for array in arrays]
        else:
            padding[spec.name] = fills[spec.name]
        inputs[spec.name] = arrays
    return inputs, padding


def _padded(array: NDArray[Any], length: int, fill: float, name: str) -> NDArray[Any]:
    if len(array) > length:
        raise DataError(f"{name!r} takes {length} tokens a sample, a text has {len(array)}: set max_length: {length}")
    return np.concatenate([array, np.full(length - len(array), fill, dtype=array.dtype)])
