"""Threat models: what the adversary may change, and how often."""

from milp_agt.threats.samples import (
    FeatureLabelPoisoning,
    FeaturePoisoning,
    Insertion,
    LabelPoisoning,
    Removal,
    SeparatePoisoning,
    Substitution,
)
from milp_agt.threats.threat_model import ThreatModel
from milp_agt.threats.threat_table import THREATS, threat_kind

__all__ = [
    "THREATS",
    "FeatureLabelPoisoning",
    "FeaturePoisoning",
    "Insertion",
    "LabelPoisoning",
    "Removal",
    "SeparatePoisoning",
    "Substitution",
    "ThreatModel",
    "threat_kind",
]
