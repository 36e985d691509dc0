"""Certified robustness of gradient-based training to data poisoning."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milp_agt.attacks import Attack as Attack
    from milp_agt.attacks import Search as Search
    from milp_agt.attacks import attack as attack
    from milp_agt.certification.certify import certify as certify
    from milp_agt.certification.options import CertifyOptions as CertifyOptions
    from milp_agt.certification.result import Result as Result
    from milp_agt.certification.result import load as load
    from milp_agt.core.reachable import Bounds as Bounds
    from milp_agt.core.results import Limits as Limits
    from milp_agt.data import Dataset as Dataset
    from milp_agt.data import load_dataset as load_dataset
    from milp_agt.errors import MilpAgtError as MilpAgtError
    from milp_agt.experiments.compare import compare as compare
    from milp_agt.experiments.sweep import by_point as by_point
    from milp_agt.experiments.sweep import largest as largest
    from milp_agt.experiments.sweep import sweep as sweep
    from milp_agt.properties.answer import Answer as Answer
    from milp_agt.properties.triggers import BallTrigger as BallTrigger
    from milp_agt.properties.triggers import FreeTrigger as FreeTrigger
    from milp_agt.properties.triggers import PatchTrigger as PatchTrigger
    from milp_agt.properties.witness import Witness as Witness
    from milp_agt.properties.witness import load_witness as load_witness
    from milp_agt.recording import load_run as load_run
    from milp_agt.recording import record as record
    from milp_agt.reports.folder import report as report
    from milp_agt.threats import FeatureLabelPoisoning as FeatureLabelPoisoning
    from milp_agt.threats import FeaturePoisoning as FeaturePoisoning
    from milp_agt.threats import Insertion as Insertion
    from milp_agt.threats import LabelPoisoning as LabelPoisoning
    from milp_agt.threats import Removal as Removal
    from milp_agt.threats import SeparatePoisoning as SeparatePoisoning
    from milp_agt.threats import Substitution as Substitution
    from milp_agt.training.from_sklearn import from_sklearn as from_sklearn
    from milp_agt.training.schedules import CosineDecay as CosineDecay
    from milp_agt.training.schedules import ExponentialDecay as ExponentialDecay
    from milp_agt.training.schedules import InverseTimeDecay as InverseTimeDecay
    from milp_agt.training.schedules import Milestones as Milestones
    from milp_agt.training.schedules import StepDecay as StepDecay
    from milp_agt.training.training import ParameterGroup as ParameterGroup
    from milp_agt.training.training import Training as Training

__version__ = "0.1.0"

# Imported on first use, so that `import milp_agt` costs neither torch nor a solver.
_HOMES = {
    "Answer": "properties.answer",
    "Attack": "attacks",
    "BallTrigger": "properties.triggers",
    "Bounds": "core.reachable",
    "CertifyOptions": "certification.options",
    "CosineDecay": "training.schedules",
    "Dataset": "data",
    "ExponentialDecay": "training.schedules",
    "FeatureLabelPoisoning": "threats",
    "FeaturePoisoning": "threats",
    "FreeTrigger": "properties.triggers",
    "Insertion": "threats",
    "InverseTimeDecay": "training.schedules",
    "LabelPoisoning": "threats",
    "Limits": "core.results",
    "Milestones": "training.schedules",
    "MilpAgtError": "errors",
    "ParameterGroup": "training.training",
    "PatchTrigger": "properties.triggers",
    "Removal": "threats",
    "Result": "certification.result",
    "Search": "attacks",
    "SeparatePoisoning": "threats",
    "StepDecay": "training.schedules",
    "Substitution": "threats",
    "Training": "training.training",
    "Witness": "properties.witness",
    "attack": "attacks",
    "by_point": "experiments.sweep",
    "certify": "certification.certify",
    "compare": "experiments.compare",
    "from_sklearn": "training.from_sklearn",
    "largest": "experiments.sweep",
    "load": "certification.result",
    "load_dataset": "data",
    "load_run": "recording",
    "load_witness": "properties.witness",
    "record": "recording",
    "report": "reports.folder",
    "sweep": "experiments.sweep",
}

# Modules that users read names from: agt.attacks.Accuracy, agt.errors.SoundnessError.
_ROOMS = {
    "attacks": "attacks",
    "data": "data",
    "errors": "errors",
    "schedules": "training.schedules",
    "threats": "threats",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f"milp_agt.{_ROOMS[name]}")
    if name not in _HOMES:
        near = difflib.get_close_matches(name, [*_HOMES, *_ROOMS], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise AttributeError(f"module 'milp_agt' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"milp_agt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
