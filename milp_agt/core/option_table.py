"""The base of all option tables: strict keys, kinds of numbers, and custom problems."""

from __future__ import annotations

import operator
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, reduce
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Self,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from milp_agt.errors import InvalidInputError, Problem

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, json_schema_extra={"x-unit": "seconds"})]
Memory = Annotated[str, Field(examples=["4GiB"])]
KIND = "The kind of this table, which decides what other keys it has."
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Table(BaseModel):
    """A table that refuses unknown keys, type conversions and non-finite numbers."""

    model_config = STRICT
    made_of: ClassVar[Any] = None

    def arguments(self) -> dict[str, Any]:
        """What the file gives of the fields of the class that the table is made of."""
        own = {each.name for each in fields(self.made_of)}
        return {name: getattr(self, name) for name in self.model_fields_set & own}

    def build(self) -> Any:
        """An object of the class that the table is made of."""
        return self.made_of(**self.arguments())

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        """What does not go together among the keys that are ``given``.

        Also asked of a table with wrong values, which are :data:`WRONG` then: it says all that is
        wrong with a file at once.
        """
        yield from ()

    @classmethod
    def refusals(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        """What building the table would refuse, asked of a file with other problems only."""
        yield from ()

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        given = {key: getattr(self, key) for key in self.model_fields_set}
        found = tuple(self.contradictions(given))
        if found:
            raise problems(found)
        return self


TableType = TypeVar("TableType", bound=Table)
Class = TypeVar("Class")


class Kinds(Generic[TableType]):
    """The tables that may stand at one key, told apart by their key ``kind``; sorted by it.

    Args:
        what: the key of the run file, for messages.
        base: of tables that are made of dataclasses.
        find: imports the modules that register tables of ours.
    """

    def __init__(
        self, what: str, base: type[TableType], find: Callable[[], object] = lambda: None
    ) -> None:
        self._what, self._base, self._find = what, base, find
        self._tables: dict[str, type[TableType]] = {}

    def register(self, table: type[TableType]) -> type[TableType]:
        """Class decorator: enter a table under the value of its key ``kind``.

        Raises:
            InvalidInputError: a kind that is taken.
        """
        kind = kind_of(table)
        if kind in self._tables:
            raise InvalidInputError(
                f"[{self._what}] kind = '{kind}' was registered twice",
                f"{self._tables[kind].__name__} and {table.__name__}",
                "choose another kind",
            )
        self._tables[kind] = table
        return table

    def kind(
        self, kind: str, about: str, base: type[TableType] | None = None
    ) -> Callable[[type[Class]], type[Class]]:
        """Class decorator: enter a dataclass as a kind; its fields with a :class:`Key` are the keys.

        Raises:
            InvalidInputError: a kind that is taken.
        """

        def enter(cls: type[Class]) -> type[Class]:
            self.register(table_of(cls, base or self._base, about, kind=kind))
            return documented(cls)

        return enter

    def forget(self, kind: str) -> None:
        """Take a kind out again."""
        del self._tables[kind]

    def all(self) -> dict[str, type[TableType]]:
        """Every registered table by its kind."""
        self._find()
        return dict(sorted(self._tables.items()))


def kind_of(table: type[Table]) -> str:
    """The kind that a table is for."""
    (kind,) = table.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
    return str(kind)


@dataclass(frozen=True)
class OneOf:
    """Annotation of a key at which any table of some kinds may stand."""

    kinds: Kinds[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        tables = reduce(operator.or_, self.kinds.all().values())
        return handler.generate_schema(Annotated[tables, Field(discriminator="kind")])


@dataclass(frozen=True)
class Key:
    """Annotation of a field of a dataclass that is a key of a run file as well.

    Attributes:
        values: what the key takes there.
        means: one sentence or more; what the class says of the field below ``Attributes:`` unless given.
        required: whether a run file has to give it where Python has a default.
    """

    values: Any
    means: str = ""
    required: bool = False

    def field(self, default: object = MISSING) -> tuple[Any, Any]:
        """The key as a field of a table; required without a default, absent with one that TOML has not."""
        if default is MISSING or self.required:
            return self.values, Field(description=self.means)
        if isinstance(default, (bool, int, float, str)):
            return self.values, Field(default=default, description=self.means)
        return self.values | None, Field(default=None, description=self.means)


@cache
def _keys(cls: type) -> dict[str, Key]:
    hints = get_type_hints(cls, include_extras=True)
    told: dict[str, str] = {}
    for home in reversed(cls.__mro__):
        told |= described(home.__doc__ or "")
    marks = {each.name: getattr(hints[each.name], "__metadata__", ()) for each in fields(cls)}
    return {
        name: key if key.means else replace(key, means=told.get(name, ""))
        for name, found in marks.items()
        for key in found
        if isinstance(key, Key)
    }


def described(doc: str, section: str = "Attributes") -> dict[str, str]:
    """What a docstring says of each attribute or argument, as a sentence with single backquotes."""
    _, _, text = doc.partition(f"\n    {section}:\n")
    text = text.partition("\n\n")[0]
    found = re.findall(r"^ {8}(\w+): (.+(?:\n {9,}.+)*)", text, re.MULTILINE)
    told = {name: " ".join(entry.split()).replace("``", "`") for name, entry in found}
    return {name: entry[:1].upper() + entry[1:] for name, entry in told.items()}


def keys_of(cls: type) -> dict[str, tuple[Any, Any]]:
    """The keys of a dataclass as fields of a table."""
    defaults = {each.name: each.default for each in fields(cls)}
    return {name: key.field(defaults[name]) for name, key in _keys(cls).items()}


def unfit(given: Any) -> dict[str, InvalidInputError]:
    """What is wrong with the numbers and truth values of a dataclass, by field, as its keys say.

    Numbers may be numpy's; None is right where it is the default. Keys of other values are left alone.
    """
    kind: Any = type(given)
    defaults, found = {each.name: each.default for each in fields(given)}, {}
    for field, key in _keys(kind).items():
        value, optional = getattr(given, field), defaults[field] is None
        if error := misfit(kind.__name__, field, key.values, value, optional):
            found[field] = error
    return found


def misfit(
    whose: str, name: str, kind: Any, value: object, optional: bool
) -> InvalidInputError | None:
    """What is wrong with one number, truth value or list of numbers for a key of this kind."""
    wanted = _wanted(kind, value)
    if wanted is None or (value is None and optional):
        return None
    return InvalidInputError(
        f"{whose} needs {name} to be {wanted}{', or None' * optional}",
        f"{name} = {value!r:.80}",
        f"change {name}",
    )


def check_fields(given: Any) -> None:
    """See that the numbers of a dataclass are as its keys say; those of numpy become plain ones.

    Raises:
        InvalidInputError: the first that is not, see :func:`unfit`.
    """
    for error in unfit(given).values():
        raise error
    for each in fields(given):
        if isinstance(value := getattr(given, each.name), np.generic):
            object.__setattr__(given, each.name, value.item())


_LIMITS = {"gt": (">", operator.gt), "ge": (">=", operator.ge), "lt": ("<", operator.lt)}


def _wanted(kind: Any, value: Any) -> str | None:
    """What a value should be that is no number, truth value or list of numbers of this kind."""
    base, *marks = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(base) is list:
        listed = isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim)
        if not listed or (not len(value) and marks):
            return "a list of numbers"
        (inner,) = get_args(base)
        return next((f"a list, {w} each" for v in value if (w := _wanted(inner, v))), None)
    if get_origin(base) is Literal:
        known = isinstance(value, str) and value in get_args(base)
        return None if known else f"one of {', '.join(map(repr, get_args(base)))}"
    if base is bool:
        return None if isinstance(value, bool) else "True or False"
    if base not in (int, float):
        return None
    found = [each for mark in marks for each in mark.metadata]
    limits = [(*_LIMITS[n], getattr(m, n)) for m in found for n in _LIMITS if hasattr(m, n)]
    real = (int, np.integer) if base is int else (int, float, np.integer, np.floating)
    fits = isinstance(value, real) and not isinstance(value, bool) and _is_finite(value)
    if fits and all(holds(value, limit) for _, holds, limit in limits):
        return None
    words = " and ".join(f"{sign} {limit:g}" for sign, _, limit in limits)
    return f"{'a whole' if base is int else 'a'} number {words}".rstrip()


def _is_finite(value: Any) -> bool:
    """Also for whole numbers of any size, of which those beyond float64 are none."""
    return bool(np.isfinite(value)) if isinstance(value, np.number) else abs(value) < 2**1024


def table_of(
    cls: type, base: type[TableType], about: str, *, kind: str = "", without: Sequence[str] = ()
) -> type[TableType]:
    """The table of a run file with the keys of a dataclass, whose docstring is told them as well.

    Args:
        base: further keys, and what is made of the table; ``made_of`` of the table is the class.
        about: one sentence on it.
        kind: the value of its key ``kind``; no such key if empty.
        without: fields that it does not have.
    """
    own: dict[str, Any] = {
        name: field for name, field in keys_of(cls).items() if name not in without
    }
    if kind:
        own = {"kind": (Literal[kind], Field(description=KIND)), **own}
    name = f"{cls.__name__}Table"
    made = create_model(name, __base__=base, __doc__=about, __module__=cls.__module__, **own)
    made.made_of = cls
    return made


def told(name: str, description: str) -> str:
    """A key as a line of a docstring."""
    text = f"{name}: {description[:1].lower()}{description[1:]}".replace("`", "``")
    inside = " " * 8
    return textwrap.fill(text, 110, initial_indent=inside, subsequent_indent=f"{inside}    ")


def documented(cls: type[Class]) -> type[Class]:
    """Class decorator: the keys that a dataclass inherits, as a part of its docstring."""
    own, keys = described(cls.__doc__ or ""), keys_of(cls)
    lines = [told(name, key.description) for name, (_, key) in keys.items() if name not in own]
    if not lines:
        return cls
    before, raises, after = (cls.__doc__ or "").partition("\n    Raises:")
    if "Attributes:" not in before:
        before = f"{before.rstrip()}\n\n    Attributes:"
    text = "\n".join([before.rstrip(), *lines])
    cls.__doc__ = f"{text}\n{raises}{after}"
    return cls


class _Wrong:
    """A value that is not of the kind its key asks for, and is reported already."""


WRONG = _Wrong()


def problem(found: str, remedy: str) -> PydanticCustomError:
    """A problem with its own words, in the two parts that end a message."""
    return problems([(found, remedy)])


def problems(found: Sequence[Problem]) -> PydanticCustomError:
    """Several problems of one table."""
    told = "; ".join(each for each, _ in found)
    return PydanticCustomError("milp_agt", "{found}", {"found": told, "problems": tuple(found)})
