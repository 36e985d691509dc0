"""``report()``: everything that ``milp-agt certify`` writes, from a result in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milp_agt.certification import saved
from milp_agt.certification.result import Result
from milp_agt.certification.verdicts import judge
from milp_agt.core.arguments import listed, of_kind
from milp_agt.data.dataset import Dataset
from milp_agt.errors import InvalidInputError
from milp_agt.reports import evidence, write_page
from milp_agt.reports.result_folder import ResultFolder, header
from milp_agt.runfile.run_file import parse_properties


def report(
    result: Result,
    dataset: Dataset,
    folder: str | Path,
    *,
    properties: Sequence[Mapping[str, Any]] | None = None,
    suspects: bool = False,
) -> Path:
    """Write what ``milp-agt certify`` writes but for the certificate, and return ``report.html``.

    ``result.json`` (claim, verdicts, widths, provenance), ``reachable.npz`` (the boxes of the
    parameters), ``evidence.npz`` (bounds of each test point), ``report.html`` and ``figures/``. Files
    that are there already are replaced, each as a whole.

    Args:
        result: of :func:`milp_agt.certify`, finished or so far, or loaded.
        dataset: the data that were trained on, with the test part: of
            :func:`milp_agt.load_dataset`, or ``Dataset.of(x_train, y_train, x_test, y_test)``.
        folder: made where it is not there.
        properties: what is asked, one table for each property with the keys of [[property]] in a run
            file, for instance ``[{"kind": "accuracy", "at_least": 0.9}, {"kind": "stable"}]``. None asks
            for the accuracy, or the loss of a regression, without a threshold.
        suspects: name the training samples that carry the bound, and split its width by cause.

    Raises:
        InvalidInputError: data of another run than the result, properties that do not fit, a loss
            that is not finite, suspects of a result without forms, a folder that takes no files.
        ReportUnavailableError: jinja2 or matplotlib is missing; all other files are written.
        SoundnessError: an attack outside its bounds.
    """
    _check_kinds(result, dataset, folder, properties, suspects)
    folder = Path(folder)
    _check_data(result, dataset)
    kind = "accuracy" if dataset.task == "classification" else "loss"
    default = [{"kind": kind, "on": "test" if len(dataset.x_test) else "train"}]
    asked = default if properties is None else properties
    tables = parse_properties(asked)
    # Model and settings as far as a result knows them.
    model = saved.describe(result.models.step_graph.model)
    run = {"model": model, **result.settings, "property": [dict(table) for table in asked]}
    options = dict(result.settings.get("certify", {}))
    about = header(run, {}, dataset) | {"options": options}
    files = ResultFolder(folder, about, dataset.notes, len(result.steps))
    verdicts = [verdict for table in tables for verdict in judge(result, dataset, table)]
    files.save(
        result,
        verdicts,
        complete=len(result.steps) == result.total_steps,
        suspects=result.suspects() if suspects else None,
    )
    evidence.save(folder, evidence.collect(result, dataset, verdicts))
    return write_page(folder)


def _check_kinds(
    result: object, dataset: object, folder: object, properties: object, suspects: object
) -> None:
    of_kind(folder, (str, Path), "The folder of a report", "give a path")
    if not callable(getattr(result, "suspects", None)):
        raise InvalidInputError(
            "A report is about a result",
            f"{type(result).__name__} {result!r:.60}",
            "give what agt.certify() returned",
        )
    if not hasattr(dataset, "x_train"):
        raise InvalidInputError(
            "A report needs the data set",
            f"{type(dataset).__name__} {dataset!r:.60}",
            "give agt.Dataset.of(x_train, y_train, x_test, y_test)",
        )
    of_kind(suspects, bool, "suspects of a report", "give True or False")
    if properties is not None:
        listed(properties, dict, "properties", "give tables: [{'kind': 'accuracy'}]")


def _check_data(result: Result, dataset: Dataset) -> None:
    """What can be seen of another data set than the one that was certified."""
    graph, certified = result.models.step_graph, result.models.poison.features.cpu().numpy()
    asked = f"Report on a run with loss '{graph.loss.key}'"
    wanted = "classification" if graph.loss.is_classification else "regression"
    if dataset.task != wanted:
        raise InvalidInputError(
            asked,
            f"data for {dataset.task} (targets of type {dataset.y_train.dtype})",
            f"make the data set with task='{wanted}'",
        )
    count, given = len(certified), dataset.x_train
    if count == 0:  # loaded, or before the first step: the training data are not kept
        return
    same = certified.shape != given.shape or np.array_equal(certified, given)
    if count != len(given) or not same:
        found = (
            "other features"
            if count == len(given)
            else f"{len(given)} samples, not {count} as there"
        )
        raise InvalidInputError(
            asked,
            f"a training part with {found}",
            "give the data set whose training part was certified",
        )
