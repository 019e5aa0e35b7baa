"""Makes JSON schemas of the classes that OpenAPI Generator writes for Python, without importing them.

Such a class says the type of each field (`openapi_types`), its name in JSON (`attribute_map`), and refuses `None` for
fields that must be there. Patterns, ranges and allowed values are not in it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["read_models"]

_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "object"}


def read_models(texts: Iterable[str], root: str, elsewhere: Callable[[str], str]) -> dict[str, Any]:
    """Schemas by class name, of the class `root` and all that it is made of but statuses.

    `texts`: of the modules. `elsewhere`: gives the reference for a class that is in none of them.
    """
    classes = {node.name: node for text in texts for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    read: dict[str, Any] = {}
    wanted = [root]
    while wanted:
        name = wanted.pop()
        if name in read:
            continue
        node = classes[name]
        types, names = _assigned(node, "openapi_types"), _assigned(node, "attribute_map")
        must = re.findall(r"Invalid value for `(\w+)`, must not be `None`", ast.unparse(node))
        properties = {}
        for field, type_ in types.items():
            if names[field] == "status":
                continue
            mentioned = [word for word in re.findall(r"\w+", type_) if word in classes]
            wanted += mentioned
            properties[names[field]] = _schema(type_, set(mentioned), elsewhere)
        read[name] = {"type": "object", "properties": properties}
        if must:
            read[name]["required"] = sorted(names[field] for field in dict.fromkeys(must))
    return read


def _assigned(node: ast.ClassDef, name: str) -> dict[str, str]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == name:
            found: dict[str, str] = ast.literal_eval(statement.value)
            return found
    raise ValueError(f"{node.name} has no {name}: it was not written by OpenAPI Generator")


def _schema(type_: str, own: set[str], elsewhere: Callable[[str], str]) -> dict[str, Any]:
    if match := re.fullmatch(r"list\[(.+)\]", type_):
        return {"type": "array", "items": _schema(match[1], own, elsewhere)}
    if match := re.fullmatch(r"dict\(str, (.+)\)", type_):
        return {"type": "object", "additionalProperties": _schema(match[1], own, elsewhere)}
    if type_ in _PLAIN:
        return {"type": _PLAIN[type_]}
    return {"$ref": f"#/$defs/{type_}" if type_ in own else elsewhere(type_)}
