"""English prose that every Python brings along: the docstrings of its standard library."""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from calibration.errors import DataError
from calibration.rows import Rows

__all__ = ["builtin_rows", "builtin_text"]

# Modules with much prose; all of them are in every Python from 3.11 on.
_MODULES = (
    "argparse", "ast", "asyncio/base_events", "asyncio/events", "asyncio/streams", "calendar", "codecs",
    "collections/__init__", "concurrent/futures/_base", "configparser", "contextlib", "csv", "dataclasses",
    "_pydecimal", "difflib", "email/message", "fractions", "ftplib", "functools", "gettext", "http/client",
    "http/cookiejar", "imaplib", "inspect", "ipaddress", "locale", "logging/__init__", "mailbox", "optparse",
    "pickletools", "poplib", "random", "shutil", "smtplib", "socketserver", "ssl", "statistics", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "typing", "unittest/case", "unittest/mock", "urllib/request",
    "uuid", "weakref",
)  # fmt: skip
_MIN_WORDS, _MAX_WORDS = 5, 200
_MIN_DOCUMENT = 20  # words
_SOURCE = "docstrings of the Python standard library"
_NO_SOURCES = "this Python has no source files of its standard library to take text from: give --evaluation"


def builtin_text(count: int, seed: int = 0, part: Literal["evaluation", "calibration"] = "evaluation") -> list[str]:
    """At most `count` paragraphs: the first ones of docstrings of Python's standard library, each once.

    They are read from the source files, without importing them, and drawn with `seed`. A paragraph belongs to one of
    the two parts by its hash, so that what a model is calibrated with is never what it is judged by. The paragraphs
    are those of the running Python: another version gives others. Raises `DataError` if Python is here without its
    source files.
    """
    generator = random.Random(seed)
    modules = list(_MODULES)
    generator.shuffle(modules)
    found: set[str] = set()
    for module in modules:
        found.update(text for text in _paragraphs(module) if _part(text) == part)
        # Parsing all modules takes most of a second of CPU time; twice what is wanted is mixed enough.
        if len(found) >= 2 * count:
            break
    if not found:
        raise DataError(_NO_SOURCES)
    paragraphs = sorted(found)
    generator.shuffle(paragraphs)
    return paragraphs[:count]


def builtin_rows(task: str, count: int, seed: int, part: Literal["evaluation", "calibration"]) -> Rows:
    """`builtin_text` as rows for a text task, without truth: `text`; `tokens` (words) for token classification;
    `question` and `context` (two paragraphs that do not belong together) for question answering. A model that
    generates text gets whole docstrings, line by line as they stand: seven times as much text.
    """
    if task == "text-generation":
        documents = _documents(seed, part)[:count]
        values = [{"text": text} for text in documents]
        return Rows(values, range(1, len(values) + 1), _SOURCE, total=len(values))
    paired = task == "question-answering"
    texts = builtin_text(2 * count if paired else count, seed, part)
    if paired:
        middle = len(texts) // 2
        values = [
            {"question": " ".join(question.split()[:20]), "context": context}
            for question, context in zip(texts[:middle], texts[middle : 2 * middle], strict=True)
        ]
    elif task == "token-classification":
        values = [{"tokens": text.split()} for text in texts]  # type: ignore[dict-item]
    else:
        values = [{"text": text} for text in texts]
    return Rows(values, range(1, len(values) + 1), _SOURCE, total=len(values))


def _documents(seed: int, part: Literal["evaluation", "calibration"]) -> list[str]:
    found = sorted(
        {
            text
            for module in _MODULES
            for text in _docstrings(module)
            if len(text.split()) >= _MIN_DOCUMENT and _part(text) == part
        }
    )
    if not found:
        raise DataError(_NO_SOURCES)
    random.Random(seed).shuffle(found)
    return found


def _part(text: str) -> str:
    return "calibration" if hashlib.sha256(text.encode()).digest()[0] & 1 else "evaluation"


def _docstrings(module: str) -> Iterator[str]:
    file = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
    if not file.is_file():
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in _definitions(ast.parse(file.read_bytes())):
        docstring = ast.get_docstring(node) if isinstance(node, documented) else None
        if docstring is not None:
            yield docstring


def _paragraphs(module: str) -> Iterator[str]:
    for docstring in _docstrings(module):
        text = " ".join(docstring.strip().split("\n\n", 1)[0].split())
        if _MIN_WORDS <= text.count(" ") + 1 <= _MAX_WORDS and ">>>" not in text:
            yield text


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """The module, its classes and functions and theirs; the bodies of functions are not entered."""
    yield node
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _definitions(child)
