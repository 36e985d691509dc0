"""Threat models: what the adversary may change, and how often."""

from milp_agt.threats.samples import (
    FeatureLabelPoisoning,
    FeaturePoisoning,
    LabelPoisoning,
    SeparatePoisoning,
)
from milp_agt.threats.threat_model import ThreatModel
from milp_agt.threats.threat_table import THREATS, threat_kind
from milp_agt.threats.whole_samples import Insertion, Removal, Substitution

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
