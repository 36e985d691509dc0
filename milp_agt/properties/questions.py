"""What can be asked of a result, as methods: data are checked here, questions are answered in their rooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.listed import ListedData, Poisoned
from milp_agt.core.deadline import Deadline
from milp_agt.core.interval import Interval
from milp_agt.core.torch_modes import own_modes
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.about_parameters import QuestionsAboutParameters
from milp_agt.properties.accuracy import AccuracyQuestion
from milp_agt.properties.answer import Answer
from milp_agt.properties.backdoor import BackdoorQuestion
from milp_agt.properties.collective import CollectiveQuestion
from milp_agt.properties.decision import Decision, only
from milp_agt.properties.decisions import witness_of, worst_of_list
from milp_agt.properties.mean_loss import MeanLoss
from milp_agt.properties.predictions import Predictions
from milp_agt.properties.property_table import PickedPoints, TableOfPoints
from milp_agt.properties.question import Question, features_at, groups_of
from milp_agt.properties.stable import StableQuestion
from milp_agt.properties.targeted import Targets, targeted
from milp_agt.properties.triggers import BallTrigger, Trigger, Values, check_trigger
from milp_agt.properties.witness import Witness
from milp_agt.training import inputs
from milp_agt.training.inputs import ArrayLike
from milp_agt.training.precision import rounded_to

Groups = ArrayLike | Sequence[str | int]


class Questions(QuestionsAboutParameters):
    """Every question holds for all reachable models at once: for every admissible poisoning.

    Test points that the box of the parameters decides are not walked through training; the ends of their
    scores in ``answer.points`` are bounds from the box, those of all others as tight as :meth:`margins`.

    Of a run with a ``time_limit`` each question has what the run left of it, at least a quarter, for bounds,
    trees and attacks; :meth:`within` gives it another time. What is not bounded by then has bounds from the
    boxes of the parameters, which hold as well, and stays OPEN where they do not decide it:
    ``answer.limit_reached`` says so.

    Attributes:
        models: the reachable models.
        decider: attacks test points that bounds leave open; None where nobody does.
    """

    def within(self, seconds: float | Deadline | None) -> Self:
        """A copy each of whose questions takes at most so many seconds; None for no limit.

        All of them end by a :class:`Deadline` that is given; one without an end changes nothing.

        Raises:
            InvalidInputError: a negative number, or none at all.
        """
        if not isinstance(seconds, Deadline):
            Deadline.within(seconds)
            models = replace(self.models, deadline=None, seconds=seconds)
        else:
            models = replace(self.models, deadline=seconds) if seconds.ends else self.models
        return replace(self, models=models)  # type: ignore[type-var]

    @own_modes()
    def accuracy(
        self, features: ArrayLike, labels: ArrayLike, *, groups: Groups | None = None
    ) -> Answer:
        """Share of test points that the model gets right, for every admissible poisoning.

        ``features`` (n, *shape) and ``labels`` (n,) are not poisoned. A point counts as certified
        only if its margin is above zero for every reachable model; a tie does not. ``groups`` (n,)
        names a subgroup for each point: ``answer.groups`` bounds the accuracy in each of them.

        Raises:
            InvalidInputError: a regression loss, or data that do not fit.
        """
        x, y = self._test_data(features, labels, "accuracy")
        return self._ask(AccuracyQuestion.of(self.models, x, y), groups_of(groups, len(x)))

    @own_modes()
    def collective(
        self, features: ArrayLike, labels: ArrayLike, *, groups: Groups | None = None
    ) -> Answer:
        """The accuracy, where all test points face the same poisoning.

        :meth:`accuracy` lets every point have its own worst poisoning, unless selections are
        enumerated. Here the number of points that are wrong *at the same time* is bounded, by programs:
        over the selection of samples, and over the last window where the run was bounded by programs.
        The lower end is never below that of :meth:`accuracy`; all else is the same.

        Raises:
            InvalidInputError: a regression loss, or data that do not fit.
        """
        x, y = self._test_data(features, labels, "collective")
        return self._ask(CollectiveQuestion.of(self.models, x, y), groups_of(groups, len(x)))

    @own_modes()
    def margins(
        self, features: ArrayLike, labels: ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Lower and upper bounds of the smallest margin of each test point, (n,) each.

        Every point is walked through training, which :meth:`accuracy` does only where it decides.

        Raises:
            InvalidInputError: as :meth:`accuracy`.
        """
        x, y = self._test_data(features, labels, "margins")
        question, models = AccuracyQuestion.of(self.models, x, y), self.models.asked_now
        bound = models.bound_in_box if models.is_late() else models.bound
        points = question.summary(models, [bound(forms) for forms in question.forms]).points
        return points.score_lower, points.score_upper

    @own_modes()
    def leads(self, lower: ArrayLike, upper: ArrayLike) -> npt.NDArray[np.float64]:
        """Lower bounds of the score of each class less the best other one over boxes of inputs, (n, classes).

        Boxes are [lower, upper], (n, *shape) each. Where a lead is above 0, every reachable model predicts
        this class at every input of the box.

        Raises:
            InvalidInputError: a regression loss, features that do not fit, or ends that are crossed.
        """
        self._classification("leads")
        low, high = self._features(lower), self._features(upper)
        if low.shape != high.shape or bool((low > high).any()):
            raise InvalidInputError(
                "Boxes of inputs",
                f"ends of shapes {tuple(low.shape)} and {tuple(high.shape)}, or crossed",
                "give lower <= upper of one shape (n, *shape)",
            )
        models, boxes = self.models.asked_now, Interval(low.unsqueeze(0), high.unsqueeze(0))
        bound = models.bound_in_box if models.is_late() else models.bound
        count = models.step_graph.loss.classes(models.step_graph.outputs)

        def margin(label: int) -> Interval:
            own = torch.full((len(low),), label, device=low.device)
            decision = Decision.of(models, boxes, ~only(own, count))
            return decision.margin(bound(decision.forms))

        if count == 2:  # one margin is minus the other
            found = margin(1)
            leads = [-found.upper.amax(0), found.lower.amin(0)]
        else:
            leads = [margin(label).lower.amin(0) for label in range(count)]
        return np.asarray(torch.stack(leads, -1).cpu().numpy())

    @own_modes()
    def loss(
        self, features: ArrayLike, labels: ArrayLike, *, groups: Groups | None = None
    ) -> Answer:
        """Mean loss over test points, for every admissible poisoning of the training data.

        The mean is bounded as one quantity of the model, not as the mean of what is worst for each
        point: all points face the same poisoning. It is the plain loss: label smoothing and weights of
        classes belong to training.

        Raises:
            InvalidInputError: data that do not fit, or a nominal loss that is not finite.
        """
        x, y = self._test_data(features, labels, None)
        return self._ask(MeanLoss.of(self.models, x, y), groups_of(groups, len(x)))

    @own_modes()
    def stable(self, features: ArrayLike, *, groups: Groups | None = None) -> Answer:
        """Share of points that every reachable model classifies as the nominal one does.

        Raises:
            InvalidInputError: a regression loss, or data that do not fit.
        """
        self._classification("stable")
        x = self._features(features)
        return self._ask(StableQuestion.of(self.models, x), groups_of(groups, len(x)))

    @own_modes()
    def targeted(
        self, features: ArrayLike, targets: Targets, *, groups: Groups | None = None
    ) -> Answer:
        """Share of test points that the adversary can push into outputs that are unsafe.

        ``upper`` bounds what any admissible poisoning reaches; a tie counts as reached. ``targets``
        for a classifier: one class, a class for each point (n,), a collection of classes for each,
        or a mask (n, classes). For regression: an interval [low, high] of unsafe outputs, (2,) or
        (n, 2), or (n, outputs, 2) for a model with several outputs; infinite ends make half-lines.

        Raises:
            InvalidInputError: data or targets that do not fit.
        """
        x = self._features(features)
        return self._ask(targeted(self.models, x, targets), groups_of(groups, len(x)))

    @own_modes()
    def backdoor(
        self,
        features: ArrayLike,
        labels: ArrayLike,
        radius: Values | None = None,
        *,
        trigger: Trigger | None = None,
        target: int | None = None,
        groups: Groups | None = None,
    ) -> Answer:
        """Success rate of triggers in the test inputs, on top of any admissible poisoning.

        ``upper`` bounds the share of points for which some model and some input of the trigger's
        set give a wrong class (or the class ``target``, counted over points of other classes). The
        trigger is chosen at the time of prediction, for each point anew, and is no part of the budget.
        ``lower`` and ``nominal`` are what one trigger achieves that was found on the nominal model.

        Args:
            features, labels: test points (n, *shape) and their classes (n,).
            radius: the l_inf ball around each test point; the same as ``trigger=BallTrigger(radius)``.
            trigger: the set of triggered inputs.
            target: the class that the adversary wants; None for any wrong one.
            groups: as in :meth:`accuracy`.

        Raises:
            InvalidInputError: a regression loss, data, trigger or target that do not fit, or not
                exactly one of ``radius`` and ``trigger``.
        """
        if (radius is None) == (trigger is None):
            raise InvalidInputError(
                "A backdoor needs one trigger",
                "neither radius nor trigger" if radius is None else "both radius and trigger",
                "give radius=0.05, or trigger= one of BallTrigger, FreeTrigger, PatchTrigger",
            )
        if trigger is None:
            assert radius is not None
            trigger = BallTrigger(radius)
        check_trigger(trigger)
        x, y = self._test_data(features, labels, "backdoor")
        question = BackdoorQuestion.of(self.models, x, y, trigger, target)
        return self._ask(question, groups_of(groups, len(x)))

    @own_modes()
    def predictions(self, features: ArrayLike) -> Predictions:
        """Bounds of every output of the model at each test point: certified intervals of a regression.

        Raises:
            InvalidInputError: features that do not fit.
        """
        return Predictions.of(self.models.asked_now, self._features(features))

    @own_modes()
    def ask(self, asked: TableOfPoints, at: PickedPoints) -> Answer:
        """A property of a run file, asked about the points ``at``.

        Raises:
            InvalidInputError: data that do not fit, or a regression where classes are asked about.
        """
        return self._ask(self._question(asked, at), groups_of(at.groups, len(at.features)))

    def data_set(self, case: int) -> Poisoned:
        """What the adversary makes of the training data in a case of a listed threat.

        Case 0 is the clean run. Cases are those of ``result.models.bound``: that in which a form has its
        least or largest value names the data set that leads there.

        Raises:
            InvalidInputError: a result whose cases are no data sets, or no such case.
        """
        adversary = self.models.reached[0].adversary
        if not isinstance(adversary, ListedData):
            raise InvalidInputError(
                "The data set of a case was asked for",
                "a result that did not list the data sets of its threat",
                "certify a finite threat (flips of classes, categories, removals) with relaxation='linear'",
            )
        if not isinstance(case, int) or not 0 <= case < len(adversary.choices):
            raise InvalidInputError(
                f"The data sets of this threat are the cases 0 to {len(adversary.choices) - 1}",
                f"case {case!r}",
                "give one of them",
            )
        return adversary.choices.poisoned(case)

    @own_modes()
    def witness(self, answer: Answer, point: int | None = None) -> Witness:
        """The poisoned data that refute a test point of an answer, by its position among the points given.

        Without a point: the data of the run that shows ``answer.reached``.

        Raises:
            InvalidInputError: no answer, or a point that is not refuted.
        """
        inputs.of_kind(answer, Answer, "An answer", "give result.accuracy(x, y), say")
        if point is not None:
            inputs.of_kind(point, (int, np.integer), "A test point", "give its position")
        return witness_of(answer, None if point is None else int(point))

    @own_modes()
    def replay(self, witness: Witness) -> dict[str, Tensor]:
        """Check a witness and train on its data: a ``state_dict()`` by plain torch, in the run's order.

        Raises:
            InvalidInputError: poisoned data that the threat does not admit (checked in exact arithmetic), or
                of another run; a result that keeps no training data (loaded, or ``refute="none"``).
            SoundnessError: the trained model lies outside the reachable set.
        """
        inputs.of_kind(witness, Witness, "A witness", "give result.witness(answer, point)")
        if self.decider is None:
            raise InvalidInputError(
                "Replay a witness",
                "a result that keeps no training run (loaded from a file, or refute='none')",
                "ask the result of certify(..., refute='quick') itself",
            )
        trained = dict(self.decider.replay(witness))
        for name, box in self.models.state.items():
            if name in trained and not Interval(box.lower[0], box.upper[0]).contains(trained[name]):
                raise SoundnessError(
                    "A model trained on admissible data must lie in the reachable set",
                    f"'{name}' outside its box",
                    "do not use this certificate; please report this run",
                )
        return trained

    def _question(self, asked: TableOfPoints, at: PickedPoints) -> Question:
        kind = asked.kind if asked.needs_classes else None
        return asked.question(self.models, *self._test_data(at.features, at.labels, kind))

    def _ask(self, question: Question, groups: npt.NDArray[Any] | None) -> Answer:
        """The answer with what the decider adds: points that are refuted, and what attacks reach."""
        models = self.models.asked_now
        answer = question.answer(models, groups)
        is_open = not answer.points.judged or not bool((answer.points.score_lower > 0).all())
        if self.decider is not None and is_open and not models.is_late():
            if models.watch is not None:  # all are bounded
                models.watch(*[len(answer.points.index)] * 2)
            listed = worst_of_list(models, question, answer)
            answer = self.decider.decide(question, answer, listed, models.deadline)
        missed = models.deadline is not None and models.deadline.missed
        return replace(answer, limit_reached=True) if missed else answer

    def _features(self, features: ArrayLike) -> Tensor:
        x = features_at(features, self.models.step_graph)
        x = rounded_to(x, self.models.step_graph.precision)
        return x.to(self.models.poison.features.device)

    def _test_data(
        self, features: ArrayLike, labels: ArrayLike, classification: str | None
    ) -> tuple[Tensor, Tensor]:
        if classification is not None:
            self._classification(classification)
        x = self._features(features)
        graph = self.models.step_graph
        y = inputs.labels_of(labels, len(x), graph.loss, graph.outputs, "Test labels")
        return x, y.to(x.device)

    def _classification(self, question: str) -> None:
        loss = self.models.step_graph.loss
        if not loss.is_classification:
            raise InvalidInputError(
                f"'{question}' is a question about a classifier",
                f"loss '{loss.key}', a regression",
                "ask for the loss, or for targets, instead",
            )
