"""Rows as the texts that a language model reads: documents, or chats as the model's own template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from calibration.errors import DataError
from calibration.rows import Rows

__all__ = ["Documents", "Message", "documents"]

Message = dict[str, Any]
"""One turn of a chat: its `role`, its `content`, and whatever else the template knows (`tool_calls`, `name`, …)."""

# Templates that write the date (Llama 3's, say) would make other tokens of the same data every day. This is the date
# that Llama 3's own template falls back to.
_TODAY = datetime(2024, 7, 26)


@dataclass(frozen=True)
class Documents:
    """What a language model is to read of rows: `parts[i]` is the text of row `i`, or its messages."""

    kind: Literal["documents", "chats"]
    parts: Sequence[str | list[Message]]
    rows: Rows
    tokenizer: Any

    def __len__(self) -> int:
        return len(self.parts)

    def text(self, index: int) -> str:
        """Document `index`; a chat as the model's template writes it, with its special tokens and always the same date.

        Raises `DataError` naming the row if the template refuses the chat.
        """
        part = self.parts[index]
        return part if isinstance(part, str) else _written(part, self.tokenizer, self.rows.where(index))


def documents(rows: Rows, tokenizer: Any) -> Documents:
    """The documents in rows, for the model of a tokenizer of transformers.

    Chats are `messages` (a list of them; as JSON in a text, too, which is how CSV keeps it), each with a `role` and a
    `content`, or a `prompt` of the user's and the `completion` that the model should give (texts, or lists of
    messages). Other rows are documents: `text`. Rows that could be both are chats if the model has a chat template.

    Raises `DataError` for missing columns; for chats if the model has no chat template; and, naming the row, for what
    is no text, empty, or no list of messages.
    """
    if not rows.has("messages") and not rows.has("prompt", "completion"):
        if not rows.has("text") and (rows.has("prompt") or rows.has("completion")):
            rows.require("prompt", "completion")
        return Documents("documents", _texts(rows), rows, tokenizer)
    if tokenizer.chat_template is None:
        if rows.has("text"):
            return Documents("documents", _texts(rows), rows, tokenizer)
        raise DataError(
            f"{rows.source} holds chats ({', '.join(map(repr, rows.names))}), but the model has no chat template to "
            "write them with: give documents (a column 'text'), or a model that was made for chats"
        )
    return Documents("chats", _chats(rows), rows, tokenizer)


def _texts(rows: Rows) -> list[str]:
    texts = rows.texts("text")
    for index, text in enumerate(texts):
        if not text.strip():
            raise DataError(f"{rows.where(index)}: 'text' is empty: leave such rows out")
    return texts


def _chats(rows: Rows) -> list[list[Message]]:
    if rows.has("messages"):
        found = enumerate(rows.column("messages"))
        return [
            _turns(rows.parsed(i, "messages", value) if isinstance(value, str) else value, rows.where(i), "messages")
            for i, value in found
        ]
    prompts, completions = (
        [
            _turns([{"role": role, "content": value}] if isinstance(value, str) else value, rows.where(index), name)
            for index, value in enumerate(rows.column(name))
        ]
        for name, role in (("prompt", "user"), ("completion", "assistant"))
    )
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


def _turns(value: Any, where: str, name: str) -> list[Message]:
    listed = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(listed, (list, tuple)) or not listed:
        raise DataError(f"{where}: {name!r} should be a list of messages, it is {_shown(listed)}")
    return [_turn(message, f"{where}: message {number} of {name!r}") for number, message in enumerate(listed, 1)]


def _turn(message: Any, which: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{which} should have a 'role' and a 'content', it is {_shown(message)}")
    # In a Parquet file every message has the fields of all others.
    turn = {key: value for key, value in message.items() if value is not None or key == "content"}
    role, content, calls = turn.get("role"), turn.get("content"), turn.get("tool_calls")
    if not isinstance(role, str) or not role:
        raise DataError(f"{which} should have a 'role' (system, user, assistant), it has {_shown(role)}")
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(f"{which} should have a 'content' that is text, it has {_shown(content)}")
    if role == "assistant" and not calls and not str(content).strip():
        raise DataError(f"{which} is an empty answer: leave such rows out")
    return turn


def _written(messages: list[Message], tokenizer: Any, where: str) -> str:
    import jinja2

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=_TODAY.strftime)
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half of a surrogate pair, which is no character") from error
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"{where}: the model's chat template does not take this chat: {error}") from error
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
