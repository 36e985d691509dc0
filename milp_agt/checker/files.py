"""The files of a certificate, read with suspicion: nothing in them is executed, followed or unpacked.

A certificate is a folder of plain files: ``claim.json``, ``claim.sha256`` and arrays (``*.npy`` of
binary64, int64, words of two bytes, or bytes). Every array is listed in the claim with its size and SHA-256;
what is hashed is what is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milp_agt.checker.boxes import Array

CLAIM, SEAL = "claim.json", "claim.sha256"
NAME = re.compile(r"[a-z0-9_]{1,80}\.npy")
HEADER = re.compile(
    rb"\{'descr': '(<f8|<i8|<u2|\|u1)', 'fortran_order': False, 'shape': \(([0-9, ]{0,100})\), \} *\n"
)
LARGEST_CLAIM, LARGEST_ARRAY = 2**26, 2**33  # bytes
KINDS = {b"<f8": np.float64, b"<i8": np.int64, b"<u2": np.uint16, b"|u1": np.uint8}


class Rejected(Exception):
    """The certificate is damaged, contradicts itself, or states what does not follow."""


@dataclass(frozen=True)
class Table:
    """A JSON object that knows where it stands, and the arrays that it names: what is missing, left over or
    of another type is refused.
    """

    values: Mapping[str, Any]
    where: str
    arrays: dict[str, Array] = field(default_factory=dict)  # of the whole claim
    named: set[str] = field(default_factory=set)  # those that were read
    used: set[str] = field(default_factory=set)
    parts: list[Table] = field(default_factory=list)

    def _taken(self, key: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
        self.refuse(key not in self.values, f": '{key}' is missing")
        self.used.add(key)
        value = self.values[key]
        self.refuse(not fits(value), f": '{key}' should be {wanted}, not {value!r:.60}")
        return value

    def has(self, key: str) -> bool:
        """Whether the value of a key, which has to be there, is not null."""
        return self._taken(key, "anything", lambda value: True) is not None

    def text(self, key: str) -> str:
        return str(self._taken(key, "a text", lambda value: isinstance(value, str)))

    def word(self, key: str, words: Iterable[str]) -> str:
        wanted = f"one of {', '.join(words)}"
        return str(self._taken(key, wanted, lambda v: isinstance(v, str) and v in words))

    def whole(self, key: str, least: int = 0, most: int = 2**40) -> int:
        wanted = f"a whole number from {least} to {most}"
        return int(self._taken(key, wanted, lambda v: type(v) is int and least <= v <= most))

    def flag(self, key: str) -> bool:
        return bool(self._taken(key, "true or false", lambda value: type(value) is bool))

    def real(self, key: str) -> float:
        """A binary64 number, written in hexadecimal: decimals would be rounded."""
        wanted = "a finite number as float.hex() writes it"
        return float.fromhex(self._taken(key, wanted, _is_hexadecimal))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._taken(key, "a list of texts", lambda value: _lists(value, str)))

    def table(self, key: str) -> Table:
        found = self._taken(key, "a table", lambda value: isinstance(value, dict))
        return self._part(found, key)

    def tables(self, key: str) -> list[Table]:
        found = self._taken(key, "a list of tables", lambda value: _lists(value, dict))
        return [self._part(each, f"{key}[{k}]") for k, each in enumerate(found)]

    def _part(self, values: Mapping[str, Any], key: str) -> Table:
        self.parts.append(Table(values, f"{self.where}.{key}", self.arrays, self.named))
        return self.parts[-1]

    def array(self, key: str, shape: tuple[int, ...] | None = None, kind: str = "f") -> Array:
        """The array that a key names, of a kind (``f``, ``i`` or ``u``) and shape."""
        name = self.text(key)
        self.refuse(name not in self.arrays, f": '{key}' names {name!r:.60}, no file of the claim")
        found = self.arrays[name]
        wrong = found.dtype.kind != kind or (shape is not None and found.shape != shape)
        is_, wanted = f"{found.dtype} of shape {found.shape}", f"'{kind}', {shape or 'any'}"
        self.refuse(wrong, f".{key}: {name} holds {is_}, where {wanted} is needed")
        self.named.add(name)
        return found

    def refuse(self, wrong: bool | np.bool, what: str) -> None:
        """Reject the certificate if something here is wrong."""
        if wrong:
            raise Rejected(f"{self.where}{what}")

    def finish(self) -> None:
        """See that nothing was left unread, here and below."""
        rest = sorted(set(self.values) - self.used)
        self.refuse(bool(rest), f": unknown keys {', '.join(rest)}")
        for part in self.parts:
            part.finish()


def _lists(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _is_hexadecimal(value: Any) -> bool:
    """Whether it is a text that ``float.hex()`` gives for a finite number, to the letter."""
    try:
        found = float.fromhex(value) if isinstance(value, str) and len(value) < 40 else math.nan
    except (ValueError, OverflowError):
        return False
    return math.isfinite(found) and found.hex() == value


def open_certificate(folder: Path) -> tuple[Table, str, int]:
    """The claim in a folder, its SHA-256, and how many bytes there are.

    Raises:
        Rejected: whatever is missing, damaged, left over, linked or too large.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Rejected(f"{folder}: no folder of its own")
    text = _bytes(folder / CLAIM, LARGEST_CLAIM)
    digest = hashlib.sha256(text).hexdigest()
    if _bytes(folder / SEAL, 200) != f"{digest}  {CLAIM}\n".encode():
        raise Rejected(f"{CLAIM}: its SHA-256 is {digest}, which is not what {SEAL} says")
    try:
        values = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{CLAIM}: {error}") from None
    if not isinstance(values, dict):
        raise Rejected(f"{CLAIM}: no table")
    claim = Table(values, "claim")
    listed, size = claim.table("files"), len(text)
    for name in listed.values:
        listed.refuse(not NAME.fullmatch(name), f": {name!r:.60} is no plain name of an array")
        entry = listed.table(name)
        data = _bytes(folder / name, LARGEST_ARRAY, entry.whole("bytes"))
        same = hashlib.sha256(data).hexdigest() == entry.text("sha256")
        entry.refuse(not same, ": its SHA-256 is another one")
        claim.arrays[name], size = _array(name, data), size + len(data)
    extra = sorted({each.name for each in folder.iterdir()} - {*claim.arrays, CLAIM, SEAL})
    claim.refuse(bool(extra), f": it does not list a file that is there, {extra[:1]!r:.60}")
    return claim, digest, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in a table")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _bytes(path: Path, most: int, wanted: int | None = None) -> bytes:
    """The content of a plain file of a size that is known beforehand; links are not followed."""
    try:
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        handle = os.open(path, os.O_RDONLY | flags)
        with open(handle, "rb") as stream:
            about = os.fstat(stream.fileno())
            if path.is_symlink() or not stat.S_ISREG(about.st_mode):
                raise Rejected(f"{path.name}: no plain file")
            if about.st_size > most or (wanted is not None and about.st_size != wanted):
                raise Rejected(
                    f"{path.name}: {about.st_size} bytes, not {wanted or f'up to {most}'}"
                )
            return stream.read(about.st_size)
    except OSError as error:
        raise Rejected(f"{path.name}: {error.strerror or error}") from None


def _array(name: str, data: bytes) -> Array:
    """An array in version 1.0 of numpy's format; its header is matched, never evaluated."""
    header = HEADER.fullmatch(data[10 : 10 + int.from_bytes(data[8:10], "little")])
    if data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise Rejected(f"{name}: not an array of such numbers in numpy's format 1.0")
    kind, rest = np.dtype(KINDS[header[1]]), data[10 + len(header[0]) :]
    try:
        shape = tuple(int(part) for part in header[2].decode().split(",") if part.strip())
        found = np.frombuffer(rest, dtype=kind).reshape(shape)
    except (ValueError, OverflowError):
        raise Rejected(f"{name}: {len(rest)} bytes for a shape {header[2]!r}") from None
    if kind.kind == "f" and not np.isfinite(found).all():
        raise Rejected(f"{name}: numbers that are not finite")
    return found
