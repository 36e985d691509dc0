"""Reads the text of a RUN.toml; needs none of what a run is computed with."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from milp_agt.errors import ConfigurationError


def read_tables(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a run file, and its tables as TOML has them.

    Raises:
        ConfigurationError: a file that is absent or not TOML.
    """
    asked = f"Read the run file {path}"
    try:
        raw = path.read_bytes()
        return raw, tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(
            asked, error.strerror or str(error), "give the path of a RUN.toml"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            asked, f"a file that is not TOML ({error})", "correct the syntax there"
        ) from error
