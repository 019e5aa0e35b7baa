"""Byte-level tokenizers of a few hundred tokens, with and without what tokenizers of language models add to a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.artifact import Artifact
from stages.language.checkpoint import Checkpoint

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '' }}\n{% endfor %}"
)
"""Writes the token that begins a text itself, as those of Llama, Mistral and Gemma do."""

SPECIAL = ("<s>", "</s>", "<mask>")


def save_tokenizer(
    folder: Path,
    *,
    before: Sequence[str] = ("<s>",),
    after: Sequence[str] = (),
    ends: bool = True,
    template: str | None = CHAT,
) -> Path:
    """A tokenizer that puts the special tokens `before` and `after` around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the cat sat on the mat and the dog sat on the log " * 4], trainer)
    ids = [(token, backend.token_to_id(token)) for token in SPECIAL]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=ids
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>" if ends else None, model_max_length=32
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **how: Any) -> Any:
    from calibration.language import load_language_tokenizer

    return load_language_tokenizer(save_tokenizer(folder, **how))


def checkpoint(folder: Path, *, positions: int = 64, vocabulary: int = 300) -> Artifact:
    """A checkpoint with the tokenizer that lies in `folder`, and no weights."""
    attention = {"layers": 1, "heads": 2, "kv_heads": 1, "head_size": 8, "windows": [None]}
    description = Checkpoint(
        architecture="LlamaForCausalLM",
        model_type="llama",
        precision="fp32",
        dtype="float32",
        parameters=1,
        vocabulary=vocabulary,
        hidden_size=16,
        positions=positions,
        attention=attention,  # type: ignore[arg-type]
        tied_head=False,
        begins_with=0,
    )
    return Artifact.of_files(folder, "checkpoint", description.metadata())
