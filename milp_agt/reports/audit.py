"""What a report says to an auditor: what the certificate states, and what its check came to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milp_agt.checker import Report
from milp_agt.checker.__main__ import FOLDER, source_sha256
from milp_agt.checker.files import CLAIM
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE, replace_text

NAME = "check.json"  # in the result folder, beside the certificate


def _sha256(claim: Path) -> str:
    return hashlib.sha256(claim.read_bytes()).hexdigest()


def save(folder: Path, report: Report) -> Path:
    """Keep what a check came to in a result folder, for its report."""
    claim = folder / FOLDER / CLAIM
    # Of a certificate that is damaged the check has no hash.
    damaged = _sha256(claim) if claim.is_file() else ""
    items = [(item.outcome.text, item.name, item.detail) for item in report.items]
    found = {
        "outcome": report.outcome.text,
        "items": items,
        "claim": report.sha256 or damaged,
        "checker": source_sha256(),
    }
    replace_text(folder / NAME, json.dumps(found, indent=1) + "\n")
    return folder / NAME


def read(folder: Path) -> Mapping[str, Any] | None:
    """What a certificate states (``words``, ``not_covered``, ``assumptions``), the ``sha256`` of its claim,
    and its ``check``, if there was one of this very claim; None where no certificate was written.

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
        told = {key: stated.get(key, []) for key in ("words", "not_covered", "assumptions")}
        return {**told, "sha256": digest, "check": current}
    except (*DAMAGE, AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"Tell of the certificate in {folder}",
            f"files that cannot be read ({error})",
            "certify the run again",
        ) from None
