"""All that is wrong in a RUN.toml, as one error with what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from milp_agt.core.option_table import WRONG, Table
from milp_agt.errors import Problem

Fields = Mapping[str, tuple[str, ...]]  # the known keys of every table
Tables = Mapping[str, type[BaseModel]]  # every table by its name, kinds apart: "threat.labels"


def explain(error: ValidationError, raw: Mapping[str, Any], tables: Tables) -> list[Problem]:
    """Turn pydantic's list into all that is wrong with a file, each with what to do.

    An unknown key names its table and the nearest known key; a key that is missing only because it
    was misspelt is not reported a second time. What contradicts itself in a table with wrong values is
    found as well.
    """
    fields = {name: tuple(table.model_fields) for name, table in tables.items()}
    unknown = list(_unknown_keys(raw, fields))
    misspelt = {remedy.replace("use ", "add ", 1) for _, remedy in unknown}
    others = [problem for problem in _others(error, raw) if problem[1] not in misspelt]
    more = _contradictions(error, raw, tables)
    return list(dict.fromkeys([*unknown, *others, *more])) or list(_plainly(error, raw))


def _contradictions(
    error: ValidationError, raw: Mapping[str, Any], tables: Tables
) -> Iterator[Problem]:
    """What the tables find themselves: pydantic asks them only where every value is right."""
    wrong = {
        _real_path(item["loc"], item["type"], raw)
        for item in error.errors(include_url=False)
        if item["type"] != "milp_agt"
    }
    for path, name, item in _items(raw, tables):
        table = tables[name]
        if not issubclass(table, Table):
            continue
        given: dict[str, Any] = {}
        for key, value in item.items():
            near = key if key in table.model_fields else _nearest(key, tuple(table.model_fields))
            broken = any(each[: len(path) + 1] == (*path, key) for each in wrong)
            if near is not None:
                given[near] = WRONG if broken else value
        where, _ = _place((*path, "kind"))
        if len(path) > 1 and isinstance(path[-1], str):
            where = f"[{'.'.join(str(part) for part in path)}]"
        for found, remedy in (*table.contradictions(given), *table.refusals(given)):
            yield f"{where} {found}", remedy


def _items(
    raw: Mapping[str, Any], tables: Tables
) -> Iterator[tuple[tuple[str | int, ...], str, Mapping[str, Any]]]:
    """Every table of a file with its place and its name among ``tables``."""
    for key, value in raw.items():
        entries = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for number, item in entries:
            if not isinstance(item, dict):
                continue
            path: tuple[str | int, ...] = (key,) if number is None else (key, number)
            name = key if key in tables else f"{key}.{item.get('kind')}"
            if name not in tables:
                continue
            yield path, name, item
            for inner, part in item.items():
                if isinstance(part, dict):
                    of_kind = f"{name}.{inner}.{part.get('kind')}"
                    inside = of_kind if of_kind in tables else f"{name}.{inner}"
                    if inside in tables:
                        yield (*path, inner), inside, part


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
    for item in _of_nearest_form(error.errors(include_url=False), raw):
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            continue
        if _is_other_form(item["type"], item["input"]):
            continue
        grouped.setdefault(_real_path(item["loc"], item["type"], raw), []).append(dict(item))
    for path, items in grouped.items():
        where, key = _place(path)
        first = items[0]
        if first["type"] == "milp_agt":
            for found, remedy in first["ctx"]["problems"]:
                yield f"{where} {found}", remedy
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


def _of_nearest_form(items: Sequence[Any], raw: Mapping[str, Any]) -> Iterator[Any]:
    """The errors without those of forms that a value does not have.

    Where a key may have several forms (a number, a list, a list of lists), pydantic reports what is
    wrong with each. Meant is the form that the value fits farthest: errors inside it, fewest, deepest.
    """
    forms: dict[tuple[str | int, ...], dict[str, list[int]]] = {}
    labelled = [
        _forms(item["loc"][:-1] if item["type"] == "missing" else item["loc"], raw)
        for item in items  # the end of the path of a missing key is that key
    ]
    depths = [len(_real_path(item["loc"], item["type"], raw)) for item in items]
    for number, labels in enumerate(labelled):
        for place, label in labels:
            forms.setdefault(place, {}).setdefault(label, []).append(number)
    dropped: set[int] = set()
    for place, branches in forms.items():
        if len(branches) < 2:
            continue

        def fit(numbers: list[int], at: int = len(place)) -> tuple[bool, int, int]:
            deepest = max(depths[n] for n in numbers)
            return deepest <= at, len(numbers), -deepest

        best = min(fit(numbers) for numbers in branches.values())
        if best[0]:
            continue  # none is fitted: every form is worth naming
        for numbers in branches.values():
            if fit(numbers) != best:
                dropped.update(numbers)
    yield from (item for number, item in enumerate(items) if number not in dropped)


def _forms(location: tuple[str | int, ...], raw: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """The names of the forms that pydantic tried on the way, with their places in the file."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    path: tuple[str | int, ...] = ()
    current: Any = raw
    for part in location:
        if _is_in(part, current):
            current, path = current[part], (*path, part)
        else:
            found.append((path, str(part)))
    return found


def _is_in(part: str | int, current: object) -> bool:
    """Whether this is a key of a table, or a place of a list."""
    if isinstance(current, dict):
        return part in current
    return isinstance(current, list) and isinstance(part, int) and part < len(current)


# What pydantic says of a value that is no table, where one may stand.
_NO_TABLE = ("model_type", "dict_type", "model_attributes_type", "union_tag_not_found")


def _is_other_form(kind: str, value: object) -> bool:
    """Whether pydantic also tried the other form of a key that may be a list or a table.

    What is inside the list, or the table, is what is wrong.
    """
    if kind == "list_type" and isinstance(value, dict):
        return True
    return kind in _NO_TABLE and isinstance(value, list)


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
        if _is_in(part, current):
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
