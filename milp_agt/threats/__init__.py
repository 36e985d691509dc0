"""Threat models: what the adversary may change, and how often."""

from milp_agt.threats.samples import FeatureLabelPoisoning as FeatureLabelPoisoning
from milp_agt.threats.samples import FeaturePoisoning as FeaturePoisoning
from milp_agt.threats.samples import Insertion as Insertion
from milp_agt.threats.samples import LabelPoisoning as LabelPoisoning
from milp_agt.threats.samples import Removal as Removal
from milp_agt.threats.samples import SeparatePoisoning as SeparatePoisoning
from milp_agt.threats.samples import Substitution as Substitution
from milp_agt.threats.threat_model import THREATS as THREATS
from milp_agt.threats.threat_model import ThreatModel as ThreatModel
from milp_agt.threats.threat_model import threat_kind as threat_kind
