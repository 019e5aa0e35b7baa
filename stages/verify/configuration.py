"""Comparing a model's configuration with what the server made of it."""

from __future__ import annotations

from typing import Any

__all__ = ["changes"]


def changes(ours: Any, theirs: Any) -> list[str]:
    """What differs between two `ModelConfig` messages, where ours says something, in words.

    The server fills in defaults that change nothing (`platform`, names of instance groups, `preferred_batch_size`).
    What it must not have done is to change a value, or to add batching of a kind that ours does not have.
    """
    found = _differences(ours, theirs, "")
    if ours.max_batch_size == 0:  # a statement, too, which protobuf does not list
        found += _entry(0, theirs.max_batch_size, "max_batch_size")
    scheduling = "scheduling_choice"
    if ours.WhichOneof(scheduling) != theirs.WhichOneof(scheduling):
        found.append(f"the scheduling is {theirs.WhichOneof(scheduling)}, ours {ours.WhichOneof(scheduling)}")
    return found


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    found: list[str] = []
    for descriptor, value in ours.ListFields():
        name = f"{path}{descriptor.name}"
        other = getattr(theirs, descriptor.name)
        is_message = descriptor.message_type is not None
        if is_message and descriptor.message_type.GetOptions().map_entry:
            if different := sorted(map(str, set(value) ^ set(other))):
                found.append(f"{name} differs in having {', '.join(different)}")
            for key in sorted(set(value) & set(other)):
                found += _entry(value[key], other[key], f"{name}[{key}]")
        elif hasattr(value, "append"):
            if len(value) != len(other):
                found.append(f"{name} has {len(other)} entries, ours {len(value)}")
            for index, (item, theirs_item) in enumerate(zip(value, other, strict=False)):
                found += _entry(item, theirs_item, f"{name}[{index}]")
        elif is_message and not theirs.HasField(descriptor.name):
            found.append(f"{name} is gone")
        else:
            found += _entry(value, other, name)
    return found


def _entry(value: Any, other: Any, name: str) -> list[str]:
    if hasattr(value, "ListFields"):
        return _differences(value, other, f"{name}.")
    return [] if value == other else [f"{name} is {other!r}, ours {value!r}"]
