"""Train a small Llama on the source of this Python's standard library, and write what `optimize` reads.

    python examples/tiny-llama/train.py examples/tiny-llama/build

writes `checkpoint/` (as `save_pretrained` does: safetensors, configuration, generation configuration, tokenizer),
`evaluation.jsonl` ({"text"} a row: files that training never saw, whole), `calibration.jsonl` ({"text"}: files that it
did see) and `training.json` (how it was trained, and its perplexity on the held-out files). Where `checkpoint/` is
there, nothing is done. The same Python and torch give the same bytes on the same kind of machine; nothing is
downloaded and no library code is run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 20261122
STEPS = 3600
HELD_OUT = 0.06
"""The part of the files that training does not see."""

CALIBRATION_CHARACTERS = 600_000
JUDGED = 256
"""Windows of held-out text that the perplexity is measured on."""

SHORT = 0.8
"""The part of the steps whose rows are half as long and twice as many: attention over long ones is dear."""

WARM_UP = 0.05
"""The part of the steps in which the learning rate rises; from there it falls as a cosine does, to a hundredth."""

LEFT_OUT = frozenset(
    {"__phello__", "distutils", "dist-packages", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3",
     "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)  # fmt: skip
"""Parts that distributors package apart, so that one Python version gives the same data wherever it came from, tests,
and tables that are no code."""

BEGIN, END, PADDING, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"
CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% else %}<|user|>\n{{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def sources(library: Path) -> Iterator[Path]:
    """The modules of the standard library, in an order that does not depend on the file system."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        # `config-…` and `_sysconfigdata…` say how this interpreter was built.
        if not any(part in LEFT_OUT or part.startswith(("config-", "_sysconfigdata")) for part in parts):
            yield path


def split(texts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out: whole files, none in both, both in a random order."""
    shuffled = random.Random(seed).sample(texts, len(texts))
    count = max(1, round(len(texts) * HELD_OUT))
    return shuffled[count:], shuffled[:count]


def make_tokenizer(texts: Sequence[str], vocabulary: int, positions: int) -> Any:
    """A byte-level BPE tokenizer of `vocabulary` tokens that begins every text with `<s>`, as Llama's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [BEGIN, END, PADDING, USER, ASSISTANT]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, special.index(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT,
    )


def make_model(tokenizer: Any, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, positions: int):  # type: ignore[no-untyped-def]
    """A Llama with fresh weights: grouped-query attention, and a head of its own."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def encode(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """All texts behind one another, each with `</s>` behind it: [tokens] int64."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return np.concatenate([[*text.ids, tokenizer.eos_token_id] for text in encoded]).astype(np.int64)


def batches(tokens: np.ndarray, begin: int, sequence: int, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """[batch, sequence] a step: `<s>` and a stretch of the tokens.

    Each pass over the data cuts it at other places and takes the pieces in another order.
    """
    generator = np.random.default_rng(seed)
    length = sequence - 1
    starts = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(starts) < batch:
            cuts = np.arange(generator.integers(length), len(tokens) - length, length)
            starts = np.concatenate([starts, generator.permutation(cuts)])
        taken, starts = starts[:batch], starts[batch:]
        rows = np.stack([np.concatenate([[begin], tokens[start : start + length]]) for start in taken])
        yield torch.from_numpy(rows)


def fit(model: Any, rows: Iterable[torch.Tensor], steps: int, learning_rate: float, *, bfloat16: bool) -> None:
    """AdamW with a warm-up, a cosine, weight decay on matrices, and gradients of norm 1 at most."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    rising = max(1, round(steps * WARM_UP))
    started = time.monotonic()
    model.train()
    for step, tokens in enumerate(rows):
        done = (step - rising) / max(1, steps - rising)
        factor = (step + 1) / rising if step < rising else 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            passed = time.monotonic() - started
            print(f"step {step + 1} of {steps}, {passed:.0f} s: loss {loss.item():.3f}", file=sys.stderr)


def perplexity(model: Any, tokens: np.ndarray, begin: int, sequence: int) -> float:
    """Over windows of `sequence` tokens that begin with `<s>` and do not overlap, at most `JUDGED`, evenly spread."""
    length = sequence - 1
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    windows = windows[np.linspace(0, len(windows) - 1, min(JUDGED, len(windows))).astype(int)]
    rows = np.insert(windows, 0, begin, axis=1)
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for part in torch.from_numpy(rows).split(8):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).float(), part[:, 1:].reshape(-1), reduction="sum"
            )
            total += losses.item()
    return math.exp(total / windows.size)


def unigram_perplexity(trained: np.ndarray, held_out: np.ndarray, vocabulary: int) -> float:
    """Of a model that knows how often each token comes and nothing else."""
    counts = np.bincount(trained, minlength=vocabulary) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[held_out].mean()))


def write_rows(path: Path, texts: Iterable[str]) -> None:
    """One JSON object a line, put in place whole."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    unfinished.replace(path)


def beginning(texts: Sequence[str], characters: int) -> list[str]:
    """The first texts, until they have `characters` together."""
    taken: list[str] = []
    while len(taken) < len(texts) and sum(map(len, taken)) < characters:
        taken.append(texts[len(taken)])
    return taken


def train(
    out: Path,
    *,
    vocabulary: int = 4096,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 768,
    sequence: int = 512,
    batch: int = 2,
    steps: int = STEPS,
    learning_rate: float = 2e-3,
    bfloat16: bool | None = None,
    threads: int = 2,
    seed: int = SEED,
) -> Path:
    """Train, write everything into `out`, and return the checkpoint's folder; if that is there, only return it.

    `sequence` is in tokens, and the longest that the model is made for; a step sees `batch` of them. Products are in
    `bfloat16` where the processor has instructions for it, unless it is said here. The number of `threads` is part of
    the result: sums keep their order.
    """
    checkpoint = out / "checkpoint"
    if checkpoint.is_dir():
        return checkpoint
    out.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_bytes().decode(errors="replace") for path in sources(library)]
    seen, held_out = split([text for text in texts if text.strip()], seed)

    if bfloat16 is None:
        able = torch.cpu.get_capabilities()
        bfloat16 = any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        tokenizer = make_tokenizer(seen, vocabulary, sequence)
        model = make_model(tokenizer, hidden, layers, heads, kv_heads, intermediate, sequence)
        tokens, unseen = encode(tokenizer, seen), encode(tokenizer, held_out)
        begin, short = tokenizer.bos_token_id, round(steps * SHORT)
        rows = itertools.chain(
            batches(tokens, begin, sequence // 2, batch * 2, short, seed),
            batches(tokens, begin, sequence, batch, steps - short, seed + 1),
        )
        fit(model, rows, steps, learning_rate, bfloat16=bfloat16)
        report = {
            "files": len(seen),
            "held_out_files": len(held_out),
            "tokens": len(tokens),
            "held_out_tokens": len(unseen),
            "steps": steps,
            "tokens_per_step": batch * sequence,
            "parameters": model.num_parameters(),
            "perplexity": perplexity(model, unseen, begin, sequence),
            "unigram_perplexity": unigram_perplexity(tokens, unseen, len(tokenizer)),
        }
    finally:
        torch.set_num_threads(before)

    write_rows(out / "evaluation.jsonl", held_out)
    write_rows(out / "calibration.jsonl", beginning(seen, CALIBRATION_CHARACTERS))
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        unfinished = Path(scratch) / "checkpoint"
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(checkpoint)
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where to write; made if it is not there")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="fewer train a worse model sooner (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="cores to train on (default %(default)s)")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    train(directory, steps=arguments.steps, threads=arguments.threads)
    report = json.loads((directory / "training.json").read_text())
    print(
        f"{directory}: {report['parameters']:,} parameters, perplexity {report['perplexity']:.2f} on "
        f"{report['held_out_tokens']:,} tokens held out",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
