"""Many cells of moves of known poisoned samples at once: passes through training."""

from __future__ import annotations
