"""What may stand in a RUN.toml, generated from its tables: ``python -m milp_agt.runfile.reference``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from milp_agt.runfile.run_file import RunConfig, up_to_date

REQUIRED, ABSENT = "required", "not given"
Schema = Mapping[str, Any]

_NOUNS = {
    "integer": ("whole number", "whole numbers"),
    "number": ("number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "string": ("text", "texts"),
}
_ENDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Option:
    """One key of a table.

    Attributes:
        key: its name.
        values: which ones it takes, in words.
        default: as it would be written in the file; "required", or "not given".
        meaning: one sentence.
        kinds: values of ``kind`` with which the table has it; empty in tables without kinds.
    """

    key: str
    values: str
    default: str
    meaning: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionTable:
    """One table of the file.

    Attributes:
        name: as the file writes it, without brackets, such as ``training.schedule``.
        header: with them; double ones where the table may be repeated.
        about: one sentence.
        kinds: what each value of ``kind`` stands for; empty for tables without kinds.
        options: its keys.
    """

    name: str
    header: str
    about: str
    kinds: Mapping[str, str]
    options: tuple[Option, ...]


class _RunFileSchema(GenerateJsonSchema):
    """TOML has no null, and keys in a file have no titles: what editors show is what can be written."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        found = super().default_schema(schema)
        if found.get("default") is None or isinstance(found["default"], (dict, list)):
            found.pop("default", None)
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The JSON schema of a run file."""
    found = up_to_date(RunConfig).model_json_schema(schema_generator=_RunFileSchema)
    return {"$schema": _RunFileSchema.schema_dialect, **found, "title": "RUN.toml of milp_agt"}


def option_tables() -> tuple[OptionTable, ...]:
    """All tables of a run file, each before the tables inside it."""
    schema = json_schema()
    found: list[OptionTable] = []
    for name, field in schema["properties"].items():
        found += _tables(name, field, schema["$defs"])
    return tuple(found)


def _tables(name: str, field: Schema, known: Mapping[str, Schema]) -> Iterator[OptionTable]:
    """The table that a key opens, and those inside it; none for a key with a plain value."""
    parts = [known[part] for part in _parts(field)]
    if not parts:
        return
    kinds = {_kind(p): _sentence(p["description"]) for p in parts if "kind" in p["properties"]}
    yield OptionTable(
        name,
        f"[[{name}]]" if field.get("type") == "array" else f"[{name}]",
        _meaning(field, known),
        kinds,
        tuple(_options(name, parts, known)),
    )
    for part in parts:
        for key, inner in part["properties"].items():
            yield from _tables(f"{name}.{key}", inner, known)


def _parts(field: Schema) -> tuple[str, ...]:
    """Names of the definitions of the tables that may stand at a key."""
    if "$ref" in field:
        return (field["$ref"].rpartition("/")[2],)
    inside = [*field.get("anyOf", ()), *field.get("oneOf", ()), *field.get("allOf", ())]
    if "items" in field:
        inside.append(field["items"])
    return tuple(part for each in inside for part in _parts(each))


def _options(name: str, parts: Sequence[Schema], known: Mapping[str, Schema]) -> Iterator[Option]:
    """The keys of a table; one that means the same with several kinds is one option."""
    kinds: dict[tuple[str, str, str, str], list[str]] = {}
    for part in parts:
        for key, field in part["properties"].items():
            if key == "kind":
                continue
            # A table without kinds that may stand in place of the first is a choice.
            is_asked = part is parts[0] or "kind" in part["properties"]
            default = REQUIRED if is_asked and key in part.get("required", ()) else ABSENT
            if "default" in field:
                default = json.dumps(field["default"])
            inner = f"table [{name}.{key}]"
            row = (key, in_words(field, inner), default, _meaning(field, known))
            kinds.setdefault(row, []).append(_kind(part))
    if "kind" in parts[0]["properties"]:
        field = parts[0]["properties"]["kind"]
        known_kinds = {"enum": [_kind(part) for part in parts]}
        yield Option("kind", in_words(known_kinds, ""), REQUIRED, field["description"])
    for row, of in kinds.items():
        yield Option(*row, tuple(filter(None, of)))


def _kind(part: Schema) -> str:
    return str(part["properties"].get("kind", {}).get("const", ""))


def _meaning(field: Schema, known: Mapping[str, Schema]) -> str:
    """The description of a key, or of the table that it opens."""
    of_table = (known[part]["description"] for part in _parts(field))
    return _sentence(field.get("description") or next(of_table, ""))


def _sentence(description: str) -> str:
    return " ".join(description.split())


def markdown() -> str:
    """The page: one section for each table."""
    return "\n\n".join(map(section, option_tables()))


def section(table: OptionTable, width: int | None = None) -> str:
    """A table and its keys as Markdown; in a terminal in lines of so many characters."""
    lines = [f"### `{table.header}`", "", table.about, ""]
    lines += [f'- `kind = "{kind}"`: {about}' for kind, about in table.kinds.items()]
    for option in table.options:
        default = option.default
        if default not in (REQUIRED, ABSENT):
            default = f"default `{default}`"
        of = _with(table, option) if table.kinds else ""
        lines.append(f"- `{option.key}`: {option.values}; {default}{of}. {option.meaning}")
    if width is not None:
        lines = [textwrap.fill(line, width, subsequent_indent="  ") for line in lines]
    return "\n".join(lines)


def _with(table: OptionTable, option: Option) -> str:
    """With which kinds a table has a key; nothing where all do."""
    others = [kind for kind in table.kinds if kind not in option.kinds]
    if not option.kinds or not others:
        return ""
    if len(others) == 1 < len(option.kinds):
        return f"; all kinds but {others[0]}"
    return f"; kind {', '.join(option.kinds)}"


def in_words(schema: Schema, table: str, many: bool = False) -> str:
    """The values that a schema admits; ``table`` stands for a table with keys of its own.

    Args:
        schema: of one key.
        table: what to say of such a table.
        many: say "numbers" rather than "number".
    """
    if "enum" in schema or "const" in schema:
        values = [json.dumps(value) for value in schema.get("enum", [schema.get("const")])]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if "anyOf" in schema:
        *first, last = (in_words(choice, table, many) for choice in schema["anyOf"])
        return f"{', '.join(first)} or {last}" if first else last
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
    such = ", ".join(map(json.dumps, schema.get("examples", ())))
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


if __name__ == "__main__":
    print(markdown())
