"""What a report says to an auditor: what the certificate states, and what its check came to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milp_agt.checker import Report
from milp_agt.checker.__main__ import FOLDER, source_sha256
from milp_agt.checker.files import CLAIM
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE, replace_text

NAME = "check.json"  # in the result folder, beside the certificate


@dataclass(frozen=True)
class Audit:
    """The words of a certificate, and its check, where there was one of this very claim.

    Attributes:
        words, not_covered, assumptions: as the certificate states them; nothing is judged here.
        sha256: of its claim.
        check: ``outcome``, ``items`` (outcome, name, detail) and ``checker`` (SHA-256 of its source).
    """

    words: Sequence[str]
    not_covered: Sequence[str]
    assumptions: Sequence[str]
    sha256: str
    check: Mapping[str, Any] | None


def save(folder: Path, report: Report) -> Path:
    """Keep what a check came to in a result folder, for its report."""
    items = [(item.outcome.text, item.name, item.detail) for item in report.items]
    found = {
        "outcome": report.outcome.text,
        "items": items,
        "claim": report.sha256,
        "checker": source_sha256(),
    }
    replace_text(folder / NAME, json.dumps(found, indent=1) + "\n")
    return folder / NAME


def read(folder: Path) -> Audit | None:
    """The audit page of a result folder; None where no certificate was written.

    Raises:
        InvalidInputError: files that cannot be read.
    """
    claim, kept = folder / FOLDER / CLAIM, folder / NAME
    if not claim.exists():
        return None
    try:
        text = claim.read_bytes()
        stated = json.loads(text)
        digest = hashlib.sha256(text).hexdigest()
        check = json.loads(kept.read_bytes()) if kept.exists() else None
        current = check if check is not None and check["claim"] == digest else None
        words, missing, assumptions = (
            stated.get(key, []) for key in ("words", "not_covered", "assumptions")
        )
        return Audit(words, missing, assumptions, digest, current)
    except (*DAMAGE, AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"Tell of the certificate in {folder}",
            f"files that cannot be read ({error})",
            "certify the run again",
        ) from None
