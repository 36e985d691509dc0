"""Damaged and hostile certificates: all are rejected, and nothing in them is executed or followed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import certified, copied, entry, seal

from milp_agt.checker.check import Outcome, check
from milp_agt.checker.files import CLAIM, SEAL

DAMAGED = 1000


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = certified(tmp_path_factory.mktemp("intact"))
    assert check(found).outcome is Outcome.PROVED
    return found


def test_a_thousand_damaged_certificates_are_rejected(intact: Path, tmp_path: Path) -> None:
    """Flipped bits, cut, doubled and swapped files: hashes find all of them."""
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in intact.iterdir())
    copy = copied(intact, tmp_path / "copy")
    for _ in range(DAMAGED):
        name = names[rng.integers(len(names))]
        whole = (intact / name).read_bytes()
        data, how = bytearray(whole), rng.integers(4)
        if how < 2:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif how == 2:
            data = data[: rng.integers(len(data))]
        else:
            data += data[: 1 + rng.integers(len(data))]
        (copy / name).write_bytes(data)
        assert check(copy).outcome is Outcome.REJECTED, (name, how)
        (copy / name).write_bytes(whole)
    assert check(copy).outcome is Outcome.PROVED


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def _header(text: str, rest: bytes = b"") -> bytes:
    head = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + rest


def _shaped(shape: str, descr: str = "'<f8'", rest: bytes = b"") -> bytes:
    return _header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", rest)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Bomb()),
        b"",
        b"\x93NUMPY",
        _shaped("(1,)", "'|O'", pickle.dumps(Bomb())),
        _shaped("(99999999999,)"),
        _shaped("(0, 99999999999999999999)"),
        _shaped("(-1,)"),
        _shaped("(1, 2 3)"),
        _header("{'descr': __import__('os').mkdir('exploded'), 'fortran_order': False}"),
        _shaped("(1,)", "[('a', '<f8')]", b"\0" * 8),
        _shaped("(" + "1," * 60 + ")", rest=b"\0" * 8),
    ],
)
def test_hostile_arrays(
    intact: Path, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``lower_0.npy`` replaced by any bytes, hashed and sealed."""
    monkeypatch.chdir(tmp_path)
    copy = copied(intact, tmp_path / "copy")
    claim = json.loads((copy / CLAIM).read_bytes())
    (copy / "lower_0.npy").write_bytes(data)
    claim["files"]["lower_0.npy"] = entry(data)
    seal(copy, json.dumps(claim).encode())
    assert check(copy).outcome is Outcome.REJECTED
    assert not (tmp_path / "exploded").exists()


def _linked(name: str) -> Callable[[Path], object]:
    def damage(copy: Path) -> None:
        (copy / name).rename(copy.parent / name)
        (copy / name).symlink_to(copy.parent / name)

    return damage


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(copy: Path) -> None:
        (copy / "lower_0.npy").unlink()
        make(copy / "lower_0.npy")

    return damage


def _text(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda copy: seal(copy, change((copy / CLAIM).read_bytes()))


def _zip_bomb(copy: Path) -> None:
    with zipfile.ZipFile(copy / "lower_0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lower_0.npy", b"\0" * 10**7)


def _outside(copy: Path) -> None:
    claim = json.loads((copy / CLAIM).read_bytes())
    claim["files"]["../elsewhere.npy"] = claim["files"].pop("lower_0.npy")
    (copy / "lower_0.npy").rename(copy.parent / "elsewhere.npy")
    seal(copy, json.dumps(claim).encode())


def _sparse(copy: Path) -> None:
    """A terabyte of nothing."""
    with (copy / "lower_0.npy").open("r+b") as stream:
        stream.truncate(2**40)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "an array linked": _linked("lower_0.npy"),
    "the claim linked": _linked(CLAIM),
    "a queue": _instead(os.mkfifo),
    "a folder": _instead(Path.mkdir),
    "a zip bomb": _zip_bomb,
    "an array elsewhere": _outside,
    "a sparse file": _sparse,
    "no seal": lambda copy: (copy / SEAL).unlink(),
    "no claim": lambda copy: (copy / CLAIM).unlink(),
    "a file more": lambda copy: (copy / "notes.txt").write_text("trust me"),
    "a key twice": _text(lambda t: t.replace(b'"budget": 1', b'"budget": 1, "budget": 1')),
    "no number": _text(lambda t: t.replace(b'"budget": 1', b'"budget": NaN')),
    "nested": _text(lambda _: b"[" * 10**6),
    "digits": _text(lambda _: b'{"format": ' + b"9" * 10**6 + b"}"),
    "no text": _text(lambda _: b"\xff\xfe{}"),
    "nothing": _text(lambda _: b""),
    "a list": _text(lambda _: b"[]"),
    "an empty table": _text(lambda _: b"{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders(intact: Path, tmp_path: Path, name: str) -> None:
    copy = copied(intact, tmp_path / "copy")
    HOSTILE[name](copy)
    assert check(copy).outcome is Outcome.REJECTED


def test_a_linked_folder_is_not_followed(intact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(intact)
    for name in ("link", "nowhere"):
        assert check(tmp_path / name).outcome is Outcome.REJECTED
