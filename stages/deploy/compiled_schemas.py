"""Reads JSON schemas back from the validators that the npm packages `@kubernetes-models/*` hold instead of them.

Those packages compile schemas (of Go types with their kubebuilder marks, or of CRDs) to JavaScript: one file a type or
a resource, in it one function a part of the schema, always written in the same way. Everything that such a function
refuses it names by JSON Schema's keyword and its value, and that is what is read here. Whatever is not understood is an
error, so that nothing of a schema is lost unseen.

`null` is not taken over: in Kubernetes it says the same as a missing field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["read_compiled"]

_FUNCTION = re.compile(
    r'function (validate\d+)\(data,\{instancePath="",parentData,parentDataProperty,rootData=data\}=\{\}\)'
    r"\{(.*?)return (.*?)\1\.errors=(?:vErrors,0===errors|null,!0)\}",
    re.DOTALL,
)
_IMPORT = re.compile(r'import\{validate as (validate\d+)\}from"([^"]+)"')
_ENUM = re.compile(r"let (schema\d+_enum)=(\[.*?\]);")
_ERROR = re.compile(r'keyword:"(\w+)",params:\{(.*?)\}\};null===vErrors')
_CALL = re.compile(r'(validate\d+)\(data(\.\w+|\["(?:[^"\\]|\\.)*"\]|\[i0\]|\[key0\])?,\{instancePath')
_LIMITS = ("maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum")
_LEFT_OUT = ("format", "anyOf")
"""Formats are the widths of Go's numbers, and times; `anyOf` is known by its alternatives."""


def read_compiled(files: Mapping[str, str], roots: Iterable[str]) -> dict[str, Any]:
    """Schemas by name of the file, of `roots` and all that they are made of.

    `files`: the texts of `_schemas/*.js` by name without the ending. A reference to another file is `#/$defs/NAME`, one
    to another package `NAME` alone, as Kubernetes' types are called there (`IoK8sApiCoreV1PodTemplateSpec`).

    Raises `ValueError` for what is written in another way.
    """
    read: dict[str, Any] = {}
    wanted = list(roots)
    while wanted:
        name = wanted.pop()
        if name not in read:
            read[name] = _File(name, files[name]).schema()
            wanted += re.findall(r'"#/\$defs/([^"]+)"', json.dumps(read[name]))
    return {name: _flat(schema, read) for name, schema in read.items()}


class _File:
    """One compiled file: its functions, what it imports, and its lists of allowed values."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.bodies = {match[1]: match[2] + match[3] for match in _FUNCTION.finditer(text)}
        self.imported = {match[1]: match[2] for match in _IMPORT.finditer(text)}
        self.enums = {match[1]: json.loads(match[2]) for match in _ENUM.finditer(text)}
        found = re.search(r"export const validate=(validate\d+);", text)
        if found is None or len(self.bodies) != text.count("function validate"):
            raise ValueError(f"{name} is not compiled as the packages of @kubernetes-models are")
        self.main = found[1]

    def schema(self) -> Any:
        return self._part(self.main)

    def _part(self, function: str) -> Any:
        if function in self.imported:
            origin = self.imported[function]
            target = origin.rpartition("/")[2].removesuffix(".js")
            return {"$ref": f"#/$defs/{target}" if origin.startswith("./") else target}
        body = self.bodies[function]
        schema = self._asserted(function, body)
        same: list[Any] = []
        for called, place in dict.fromkeys(_CALL.findall(body)):
            part = self._part(called)
            if place == "":
                same.append(part)
            elif place == "[i0]":
                schema["items"] = part
            elif place == "[key0]":
                schema["additionalProperties"] = part
            else:
                field = place[1:] if place.startswith(".") else json.loads(place[1:-1])
                schema.setdefault("properties", {})[field] = part
        if len(_CALL.findall(body)) != len(re.findall(r"validate\d+\(data", body)):
            raise ValueError(f"{function} of {self.name} has parts that are not known")
        if 'keyword:"anyOf"' in body:
            return schema | {"anyOf": same}
        if len(same) == 1 and not schema:
            return same[0]
        return schema | ({"allOf": same} if same else {})

    def _asserted(self, function: str, body: str) -> dict[str, Any]:
        """What the function itself refuses."""
        schema: dict[str, Any] = {}
        errors = _ERROR.findall(body)
        if len(errors) != body.count('keyword:"'):
            raise ValueError(f"{function} of {self.name} has errors that are not known")
        for keyword, told in errors:
            value = told.partition(":")[2]
            if keyword == "required":
                schema.setdefault("required", []).append(json.loads(value))
            elif keyword in ("type", "pattern"):
                schema[keyword] = json.loads(value)
            elif keyword == "enum":
                schema[keyword] = self.enums[value]
            elif keyword in _LIMITS:
                schema[keyword] = _number(told.rpartition(":")[2])
            elif keyword not in _LEFT_OUT:
                raise ValueError(f"{function} of {self.name} checks {keyword}, which is not known")
        return schema


def _number(text: str) -> int:
    return int(text, 16) if "0x" in text else int(float(text))


def _flat(schema: Any, read: Mapping[str, Any]) -> Any:
    """The schema with the fields of Go's embedded structs among its own, so that it can be closed for all others."""
    if isinstance(schema, list):
        return [_flat(item, read) for item in schema]
    if not isinstance(schema, dict):
        return schema
    flat = {key: _flat(value, read) for key, value in schema.items()}
    if schema.get("type") == "object" and "allOf" in schema:
        del flat["allOf"]
        for reference in schema["allOf"]:
            embedded = _flat(read[reference["$ref"].removeprefix("#/$defs/")], read)
            flat["properties"] = embedded.get("properties", {}) | flat.get("properties", {})
            if required := {*embedded.get("required", []), *flat.get("required", [])}:
                flat["required"] = sorted(required)
    return flat
