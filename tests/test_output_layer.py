"""Activations at the end of a model that contradict the loss, and the run that is certified instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import milp_agt as agt
from milp_agt.errors import InvalidInputError

RNG = np.random.default_rng(1)
X = RNG.normal(size=(8, 2))
Y = (X[:, 0] > 0).astype(int)
SIGMOID = nn.Sigmoid()


def model(*last: nn.Module, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs), *last).double()


def certify(network: nn.Module, loss: str) -> Any:
    labels = Y.astype(float) if loss == "mse" else Y
    run = agt.Training(loss=loss, learning_rate=0.5, epochs=4)
    return agt.certify(
        network, (X, labels), run, agt.LabelPoisoning(0, 0.0 if loss == "mse" else None)
    )


@pytest.mark.parametrize(
    ("last", "loss", "named"),
    [
        ([nn.Sigmoid()], "bce", "Sigmoid"),
        ([nn.Sigmoid(), nn.Identity(), nn.Flatten(), nn.Dropout(0.0)], "bce", "Sigmoid"),
        ([nn.Sequential(nn.Identity(), nn.Sequential(nn.Sigmoid()))], "bce", "Sigmoid"),
        ([nn.Tanh()], "bce", "Tanh"),
        ([nn.ReLU()], "bce", "ReLU"),
        ([nn.LogSigmoid()], "bce", "LogSigmoid"),
        ([nn.Tanh()], "hinge", "Tanh"),
        ([nn.ReLU()], "hinge", "ReLU"),
        ([nn.Sigmoid()], "cross_entropy", "Sigmoid"),
        ([nn.Softmax(dim=1)], "cross_entropy", "Softmax"),
        ([nn.LogSoftmax(dim=1)], "cross_entropy", "LogSoftmax"),
        ([nn.Softmin(dim=1), nn.Identity()], "cross_entropy", "Softmin"),
    ],
)
def test_losses_on_logits_refuse_them(last: list[nn.Module], loss: str, named: str) -> None:
    outputs = 2 if loss == "cross_entropy" else 1
    with pytest.raises(InvalidInputError) as error:
        certify(model(*last, outputs=outputs), loss)
    assert "is on the logits" in error.value.asked
    assert error.value.found == f"a model that ends in {named}"
    assert f"take the last {named} off" in error.value.remedy
    certify(model(outputs=outputs), loss)


def test_other_places_and_other_losses_are_as_they_were() -> None:
    certify(model(nn.Sigmoid()), "mse")
    certify(model(nn.ReLU(), outputs=2), "cross_entropy")
    certify(model(nn.LeakyReLU(0.1)), "bce")
    shared = nn.Sequential(nn.Linear(2, 3), SIGMOID, nn.Linear(3, 1)).double()
    certify(shared, "bce")
    with pytest.raises(InvalidInputError, match="ends in Sigmoid"):
        certify(nn.Sequential(*shared, SIGMOID), "bce")


@pytest.mark.parametrize(
    ("last", "theirs", "loss", "outputs"),
    [
        (nn.Sigmoid(), lambda p: nn.functional.binary_cross_entropy(p[:, 0], torch.tensor(Y * 1.0)),
         "bce", 1),
        (nn.LogSoftmax(dim=1), lambda p: nn.functional.nll_loss(p, torch.tensor(Y)),
         "cross_entropy", 2),
    ],
    ids=["BCELoss", "NLLLoss"],
)  # fmt: skip
def test_following_the_remedy_certifies_the_very_run(
    last: nn.Module, theirs: Any, loss: str, outputs: int
) -> None:
    """What the user trained on probabilities lies in the set of the model without its last layer."""
    own = model(last, outputs=outputs)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        theirs(own(torch.from_numpy(X))).backward()
        optimizer.step()
    result = certify(model(outputs=outputs), loss)
    for name, value in own.named_parameters():
        trained = value.detach().numpy()
        assert np.allclose(trained, result.reachable.nominal[name], atol=1e-12, rtol=0.0)
