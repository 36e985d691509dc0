"""All that is wrong in a RUN.toml, as one error with what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from milp_agt.core.option_table import WRONG, Table
from milp_agt.errors import Problem
from milp_agt.runfile.tables import RecordTable

Fields = Mapping[str, tuple[str, ...]]  # the known keys of every table
Path = tuple[str | int, ...]
_Item = tuple[Path, str, Mapping[str, Any]]
Tables = Mapping[str, type[BaseModel]]  # every table by its name, kinds apart: "threat.labels"


class _Wrong(NamedTuple):
    """One of pydantic's errors.

    ``path`` is its place in the file: location without the names of union members, which are not there.
    ``forms`` are these names, each with its place: the forms of a key that were tried on the way.
    """

    kind: str
    path: Path
    forms: Sequence[tuple[Path, str]]
    value: Any
    said: str
    context: Mapping[str, Any]

    @property
    def is_unknown_key(self) -> bool:
        return self.kind in ("extra_forbidden", "unexpected_keyword_argument")

    @property
    def is_no_table(self) -> bool:
        return self.kind in ("model_type", "dict_type", "model_attributes_type")

    @property
    def is_other_form(self) -> bool:
        """Whether a key may be a list or a table, and the other was tried: what is inside it is wrong."""
        if self.kind == "list_type":
            return isinstance(self.value, dict)
        no_table = self.is_no_table or self.kind == "union_tag_not_found"
        return no_table and isinstance(self.value, list)

    @property
    def wanted(self) -> str:
        if self.is_no_table:
            return "a table"
        if self.kind == "tuple_type":
            return "a list of tables, each opened by [[property]]"
        for kind, words, key in (
            ("too_short", "at least", "min_length"),
            ("too_long", "at most", "max_length"),
        ):
            if self.kind == kind:
                what = "a table" if isinstance(self.value, dict) else "a list"
                items = "item" if self.context[key] == 1 else "items"
                return f"{what} of {words} {self.context[key]} {items}"
        said = self.said.removeprefix("Input should be ").removeprefix("should be ")
        for end in ("gt", "ge", "lt", "le"):
            if isinstance(limit := self.context.get(end), float):
                return f"{said.rpartition(' ')[0]} {limit:g}"
        return said

    @staticmethod
    def of(item: Any, raw: Any) -> _Wrong:
        path: Path = ()
        forms: list[tuple[Path, str]] = []
        current, location = raw, item["loc"]
        for part in location:
            if isinstance(current, dict):
                inside = part in current
            else:
                inside = isinstance(current, list) and isinstance(part, int) and part < len(current)
            if inside:
                current, path = current[part], (*path, part)
            else:
                forms.append((path, str(part)))
        if item["type"] == "missing" and forms:  # the end of its path is the key
            forms.pop()
            path = (*path, location[-1])
        return _Wrong(item["type"], path, forms, item["input"], item["msg"], item.get("ctx", {}))


def explain(error: ValidationError, raw: Mapping[str, Any], tables: Tables) -> list[Problem]:
    """Turn pydantic's list into all that is wrong with a file, each with what to do.

    An unknown key names its table and the nearest known key; a key that is missing only because it
    was misspelt is not reported a second time. What contradicts itself in a table with wrong values is
    found as well.
    """
    fields = {name: tuple(table.model_fields) for name, table in tables.items()}
    if "training" in fields:  # a record in place of options
        fields["training"] += tuple(RecordTable.model_fields)
    wrong = [_Wrong.of(item, raw) for item in error.errors(include_url=False)]
    unknown = list(_unknown_keys(raw, fields))
    misspelt = {remedy.replace("use ", "add ", 1) for _, remedy in unknown}
    others = [problem for problem in _others(wrong) if problem[1] not in misspelt]
    more = _contradictions(wrong, raw, tables)
    return list(dict.fromkeys([*unknown, *others, *more])) or list(_plainly(wrong))


def out_of_range(value: Any, path: Path = ()) -> Iterator[Problem]:
    """Whole numbers of more than the 64 bits that TOML grants them."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for part, item in inside:
        here = (*path, part)
        if isinstance(item, (dict, list)):
            yield from out_of_range(item, here)
        elif isinstance(item, int) and not -(2**63) <= item < 2**63:
            where, key = _place(here)
            name = where if key is None else f"{where} {key}"
            bits = item.bit_length()
            yield (
                f"{name} is a whole number of {bits} bits",
                "give one below 2^63, as TOML has them",
            )


def _contradictions(
    wrong: Sequence[_Wrong], raw: Mapping[str, Any], tables: Tables
) -> Iterator[Problem]:
    """What the tables find themselves: pydantic asks them only where every value is right."""
    broken = [each.path for each in wrong if each.kind != "milp_agt"]
    for path, name, item in _items(raw, tables):
        table = tables.get(name)
        if table is None or not issubclass(table, Table):
            continue
        known = tuple(table.model_fields)
        given: dict[str, Any] = {}
        for key, value in item.items():
            near = key if key in known else _nearest(key, known)
            if near is not None:
                here = (*path, key)
                given[near] = WRONG if any(b[: len(here)] == here for b in broken) else value
        for found, remedy in (*table.contradictions(given), *table.refusals(given)):
            yield f"{_where(path)} {found}", remedy


def _items(raw: Mapping[str, Any], tables: Collection[str]) -> Iterator[_Item]:
    """Every table of a file that may stand there, with its place and its name among ``tables``."""
    known = {name.split(".")[0] for name in tables}
    for key, value in raw.items():
        for number, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if key in known and isinstance(item, dict):
                yield from _inside((key,) if number is None else (key, number), key, item, tables)


def _inside(
    path: Path, base: str, item: Mapping[str, Any], tables: Collection[str]
) -> Iterator[_Item]:
    """A table and those in it; one whose kind is not known goes by the ``base`` of the names of all kinds."""
    of_kind = f"{base}.{item.get('kind')}"
    name = of_kind if base not in tables and of_kind in tables else base
    yield path, name, item
    for key, part in item.items():
        inner = f"{name}.{key}"
        if isinstance(part, dict) and any(f"{each}.".startswith(f"{inner}.") for each in tables):
            yield from _inside((*path, key), inner, part, tables)


def _where(path: Path) -> str:
    """The place of a table, for instance ``[threat.features]``."""
    if len(path) > 1 and isinstance(path[-1], str):
        return f"[{'.'.join(map(str, path))}]"
    return _place((*path, "kind"))[0]


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
    for path, name, item in _items(raw, fields):
        where, kind = _where(path), item.get("kind")
        base = name.removesuffix(f".{kind}")
        of_kinds = [k for n, keys in fields.items() if n.startswith(f"{base}.") for k in keys]
        # Where the kind itself is wrong, that is another problem.
        known = fields.get(name) or tuple(dict.fromkeys(of_kinds))
        for key in (each for each in item if each not in known):
            near = _nearest(key, known)
            home = next((n for n, keys in fields.items() if key in keys), None)
            found, remedy = (
                f"{where} unknown key '{key}'",
                f"the keys of {where} are {', '.join(known)}",
            )
            if key in of_kinds and base not in fields:
                found = f"{where} key '{key}', which kind = '{kind}' does not have"
                remedy = f"drop '{key}'"
            elif near is not None:
                remedy = f"use '{near}'"
            elif home is not None:
                remedy = f"move '{key}' to [{home.split('.')[0]}]"
            yield found, remedy


def _others(wrong: Sequence[_Wrong]) -> Iterator[Problem]:
    grouped: dict[Path, list[_Wrong]] = {}
    for each in _of_nearest_form(wrong):
        if not each.is_unknown_key and not each.is_other_form:
            grouped.setdefault(each.path, []).append(each)
    for path, items in grouped.items():
        where, key = _place(path)
        first = items[0]
        if first.kind == "milp_agt":
            for found, remedy in first.context["problems"]:
                yield f"{where} {found}", remedy
        elif first.kind in ("missing", "union_tag_not_found"):
            name = key
            if first.kind == "union_tag_not_found":
                name = "kind" if key is None else f"{key}.kind"
            if name is None:
                yield f"no table {where}", f"add the table {where}"
            else:
                yield f"{where} without the key '{name}'", f"add '{name.split('.')[-1]}'"
        elif first.kind == "union_tag_invalid":
            known = first.context["expected_tags"]
            yield f"{where} kind = {first.context['tag']!r}", f"give one of {known}"
        else:
            found = (
                f"{where} = {first.value!r}" if key is None else f"{where} {key} = {first.value!r}"
            )
            wanted = dict.fromkeys(item.wanted for item in items)
            yield found, f"{where if key is None else key} should be {' or '.join(wanted)}"


def _of_nearest_form(wrong: Sequence[_Wrong]) -> Iterator[_Wrong]:
    """The errors without those of forms that a value does not have.

    Where a key may have several forms (a number, a list, a list of lists), pydantic reports what is
    wrong with each. Meant is the form that the value fits farthest: errors inside it, fewest, deepest.
    """
    forms: dict[Path, dict[str, list[int]]] = {}
    for number, each in enumerate(wrong):
        for place, label in each.forms:
            forms.setdefault(place, {}).setdefault(label, []).append(number)
    dropped: set[int] = set()
    for place, branches in forms.items():
        fits = {}
        for label, numbers in branches.items():
            deepest = max(len(wrong[n].path) for n in numbers)
            fits[label] = deepest <= len(place), len(numbers), -deepest
        best = min(fits.values())
        if not best[0]:  # where none is fitted every form is worth naming
            dropped.update(n for label, fit in fits.items() if fit != best for n in branches[label])
    yield from (each for number, each in enumerate(wrong) if number not in dropped)


def _plainly(wrong: Sequence[_Wrong]) -> Iterator[Problem]:
    """What pydantic says, where nothing better is known: a table in place of a list, say."""
    for each in wrong:
        where, key = _place(each.path)
        name = where if key is None else key
        found = f"{where} = " if key is None else f"{where} {key} = "
        drop = f"drop '{name}', which is not known"
        remedy = drop if each.is_unknown_key else f"{name} should be {each.wanted}"
        yield f"{found}{each.value!r:.60}", remedy


def _place(path: Path) -> tuple[str, str | None]:
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


def _nearest(key: str, known: tuple[str, ...]) -> str | None:
    near = difflib.get_close_matches(key, known, 1)
    return near[0] if near else None
