"""JSON schemas of values in words: "whole number >= 1", "list of 2 numbers"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_NOUNS = {
    "integer": ("whole number", "whole numbers"),
    "number": ("number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "string": ("text", "texts"),
}
_ENDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def literal(value: Any) -> str:
    """A value as TOML writes it: a text, a number, a truth value, or a list of them."""
    return json.dumps(value)


def in_words(schema: Schema, table: str, many: bool = False) -> str:
    """The values that a schema admits; ``table`` stands for a table with keys of its own.

    Args:
        schema: of one key.
        table: what to say of such a table.
        many: say "numbers" rather than "number".
    """
    if "enum" in schema or "const" in schema:
        values = [literal(value) for value in schema.get("enum", [schema.get("const")])]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if "anyOf" in schema:
        return _either([in_words(choice, table, many) for choice in schema["anyOf"]])
    kind = schema.get("type")
    if kind == "array":
        return _list_in_words(schema, table, many)
    if kind == "object" and "additionalProperties" in schema:
        values_in_words = in_words(schema["additionalProperties"], table, many=True)
        return f"{'tables' if many else 'table'} of {values_in_words} by name"
    if kind not in _NOUNS:
        return table
    noun = schema.get("x-unit") or _NOUNS[kind][many]
    ends = " and ".join(f"{sign} {schema[end]:g}" for end, sign in _ENDS.items() if end in schema)
    such = ", ".join(map(literal, schema.get("examples", ())))
    return " ".join(filter(None, (noun, ends, such and f"such as {such}")))


def _list_in_words(schema: Schema, table: str, many: bool) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    count = "" if least is None else f"{least} " if least == most else f"{least} or more "
    lists, items = "lists" if many else "list", schema.get("items")
    if not items:
        return lists
    if "anyOf" in items:
        return f"{lists} of {count}values, each {in_words(items, table)}"
    return f"{lists} of {count}{in_words(items, table, many=True)}"


def _either(words: Sequence[str]) -> str:
    first, last = ", ".join(words[:-1]), words[-1]
    return f"{first} or {last}" if first else last
