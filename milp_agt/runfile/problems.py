"""All that is wrong in a RUN.toml, as one error with what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

Problem = tuple[str, str]  # what was found, what to do
Fields = Mapping[str, tuple[str, ...]]  # the known keys of every table


def explain(error: ValidationError, raw: Mapping[str, Any], fields: Fields) -> Problem:
    """Turn pydantic's list into the parts ``found`` and ``remedy`` of one message.

    An unknown key names its table and the nearest known key; a key that is missing only because it
    was misspelt is not reported a second time.
    """
    unknown = list(_unknown_keys(raw, fields))
    misspelt = {remedy.replace("use ", "add ", 1) for _, remedy in unknown}
    others = [problem for problem in _others(error, raw) if problem[1] not in misspelt]
    problems = unknown + others or list(_plainly(error, raw))
    found = dict.fromkeys(problem[0] for problem in problems)
    remedies = dict.fromkeys(problem[1] for problem in problems)
    return "; ".join(found), "; ".join(remedies)


def _unknown_keys(raw: Mapping[str, Any], fields: Fields) -> Iterator[Problem]:
    tables = tuple(dict.fromkeys(name.split(".")[0] for name in fields))
    for key, value in raw.items():
        if key not in tables:
            what = "table" if isinstance(value, (dict, list)) else "key"
            near = _nearest(key, tables)
            yield (
                f"unknown {what} '{key}'",
                f"use [{near}]" if near else f"the tables are {', '.join(tables)}",
            )
            continue
        items = value if isinstance(value, list) else [value]
        for number, item in enumerate(items, 1):
            if not isinstance(item, dict):
                continue
            where = f"[[{key}]] number {number}" if key == "property" else f"[{key}]"
            yield from _unknown_in(where, key, item, fields)


def _unknown_in(
    where: str, table: str, item: Mapping[str, Any], fields: Fields
) -> Iterator[Problem]:
    kind = item.get("kind")
    variants = {name: keys for name, keys in fields.items() if name.startswith(f"{table}.")}
    known = fields.get(table) or fields.get(f"{table}.{kind}")
    if known is None:  # the kind itself is wrong, which is another problem
        known = tuple(dict.fromkeys(key for keys in variants.values() for key in keys))
    for key, value in item.items():
        inside = f"{table}.{kind}.{key}"
        inside = inside if inside in fields else f"{table}.{key}"
        if isinstance(value, dict) and any(f"{n}.".startswith(f"{inside}.") for n in fields):
            yield from _unknown_in(f"[{table}.{key}]", inside, value, fields)
        if key in known:
            continue
        if any(key in keys for keys in variants.values()) and fields.get(table) is None:
            yield (f"{where} key '{key}', which kind = '{kind}' does not have", f"drop '{key}'")
            continue
        near = _nearest(key, known)
        home = next((name for name, keys in fields.items() if key in keys), None)
        if near is not None:
            remedy = f"use '{near}'"
        elif home is not None:
            remedy = f"move '{key}' to [{home.split('.')[0]}]"
        else:
            remedy = f"the keys of {where} are {', '.join(known)}"
        yield f"{where} unknown key '{key}'", remedy


def _others(error: ValidationError, raw: Mapping[str, Any]) -> Iterator[Problem]:
    grouped: dict[tuple[str | int, ...], list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            continue
        if item["type"] == "list_type" and isinstance(item["input"], dict):
            continue  # a table where a list or a table may stand: the table is what is wrong
        grouped.setdefault(_real_path(item["loc"], item["type"], raw), []).append(dict(item))
    for path, items in grouped.items():
        where, key = _place(path)
        first = items[0]
        if first["type"] == "milp_agt":
            yield f"{where} {first['ctx']['found']}", first["ctx"]["remedy"]
        elif first["type"] in ("missing", "union_tag_not_found"):
            name = key
            if first["type"] == "union_tag_not_found":
                name = "kind" if key is None else f"{key}.kind"
            if name is None:
                yield f"no table {where}", f"add the table {where}"
            else:
                yield f"{where} without the key '{name}'", f"add '{name.split('.')[-1]}'"
        elif first["type"] == "union_tag_invalid":
            yield (
                f"{where} kind = {first['ctx']['tag']!r}",
                f"give one of {first['ctx']['expected_tags']}",
            )
        else:
            value = first["input"]
            found = f"{where} {key} = {value!r}" if key is not None else f"{where} = {value!r}"
            wanted = dict.fromkeys(_wanted(item) for item in items)
            subject = key if key is not None else where
            yield found, f"{subject} should be {' or '.join(wanted)}"


def _plainly(error: ValidationError, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What pydantic says, where nothing better is known: a table in place of a list, say."""
    for item in error.errors(include_url=False):
        where, key = _place(_real_path(item["loc"], item["type"], raw))
        name = where if key is None else key
        found = f"{where} = " if key is None else f"{where} {key} = "
        unknown = item["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        yield (
            f"{found}{item['input']!r:.60}",
            f"drop '{name}', which is not known"
            if unknown
            else f"{name} should be {_wanted(dict(item))}",
        )


def _real_path(location: tuple[str | int, ...], kind: str, raw: Any) -> tuple[str | int, ...]:
    """The location without the names of union members, which are not in the file."""
    path: list[str | int] = []
    current: Any = raw
    for position, part in enumerate(location):
        inside = (isinstance(current, dict) and part in current) or (
            isinstance(current, list) and isinstance(part, int) and part < len(current)
        )
        if inside:
            current = current[part]
            path.append(part)
        elif position == len(location) - 1 and kind == "missing":
            path.append(part)
    return tuple(path)


def _place(path: tuple[str | int, ...]) -> tuple[str, str | None]:
    """The table in brackets, and the key inside it, for instance ``layers[1]``."""
    table, rest = str(path[0]), list(path[1:])
    where = f"[{table}]"
    if table == "property":
        where = "[[property]]"
        if rest and isinstance(rest[0], int):
            where, rest = f"{where} number {rest[0] + 1}", rest[1:]
    if not rest:
        return where, None
    key = str(rest[0])
    for part in rest[1:]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return where, key


def _wanted(item: Mapping[str, Any]) -> str:
    kind = item["type"]
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "a table"
    if kind == "tuple_type":
        return "a list of tables, each opened by [[property]]"
    text = str(item["msg"])
    for prefix in ("Input should be ", "should be "):
        text = text.removeprefix(prefix)
    return text


def _nearest(key: str, known: tuple[str, ...]) -> str | None:
    near = difflib.get_close_matches(key, known, 1)
    return near[0] if near else None
