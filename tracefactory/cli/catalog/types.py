"""Short texts for the types of parameters: "integer >= 1", "list of text", "a | b", "name of a model"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracefactory.core.refs import REFERS

_SIMPLE = {"string": "text", "integer": "integer", "number": "number", "boolean": "true | false", "null": "null"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def type_of(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Return the type that a JSON Schema describes, as a short text.

    Args:
        schema: the schema of a value.
        defs: the definitions that its references point to.
    """
    if "$ref" in schema:
        return type_of(defs[schema["$ref"].rpartition("/")[2]], defs)
    if REFERS in schema:
        return f"name of a {schema[REFERS]}"
    if "enum" in schema:
        return " | ".join(map(_literal, schema["enum"]))
    if "const" in schema:
        return _literal(schema["const"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(type_of(one, defs) for one in schema[union]))
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(type_of(one, defs) for one in schema['prefixItems'])}]"
    if kind == "array":
        inner = type_of(schema.get("items", {}), defs)
        several = f"({inner})" if " | " in inner and inner != _SIMPLE["boolean"] else inner
        return f"list of {several}" if inner != "any" else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        inner = type_of(values, defs) if isinstance(values, Mapping) and values else ""
        return "mapping" + (f" to {inner}" if inner and inner != "any" else "")
    bounds = (f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema)
    return " ".join([_SIMPLE.get(str(kind), "any"), ", ".join(bounds)]).strip()


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
