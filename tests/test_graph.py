"""The graph as an object: stable names, one node for one parameter, shapes, its networkx view."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from checks_steps import mlp
from draws import TOL
from same_run import MODELS, data_for, shared_module, shared_parameter

from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import evaluate
from milp_agt.errors import EncodingError
from milp_agt.formulations.leaves import Features
from milp_agt.formulations.relu import Relu
from milp_agt.training.tracing import FEATURES, LABELS, trace

NAMES = """
features 0.weight 0.bias bilinear/0.weight 0:z 1:h 2.weight 2.bias bilinear/2.weight 2:z labels
probability loss_gradient sum_samples/loss_gradient
bilinear/loss_gradient sum_samples/bilinear/loss_gradient
bilinear/loss_gradient#2 step/0:z
bilinear/bilinear/loss_gradient#2 sum_samples/bilinear/bilinear/loss_gradient#2
bilinear/bilinear/bilinear/loss_gradient#2 sum_samples/bilinear/bilinear/bilinear/loss_gradient#2
"""


def test_names_are_stable_strings() -> None:
    graphs = [trace(mlp(2, 3, 1, seed=s), "bce", (2,)) for s in (0, 1)]
    names = [[n.name for n in g.graph] for g in graphs]
    assert names[0] == names[1]
    assert names[0] == NAMES.split()
    assert graphs[0].parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert graphs[0].output == "2:z"
    assert set(graphs[0].gradients) == set(graphs[0].parameters)


def test_a_module_used_twice_has_one_parameter_node() -> None:
    step_graph = trace(shared_module(), "bce", (2,))
    assert step_graph.parameters == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert dict(step_graph.aliases) == {"2.weight": "0.weight", "2.bias": "0.bias"}
    assert "2:z" in step_graph.graph
    assert dict(trace(shared_parameter(), "bce", (2,)).aliases) == {"2.weight": "0.weight"}


@pytest.mark.parametrize("name", MODELS)
def test_networkx_view_is_a_dag_with_attributes(name: str) -> None:
    graph = trace(MODELS[name](), "bce", (2,)).graph
    view = graph.nx
    assert nx.is_directed_acyclic_graph(view)
    assert list(view) == [n.name for n in graph]
    position = {n.name: k for k, n in enumerate(graph)}
    for node in graph:
        assert view.nodes[node.name] == {
            "op": node.op.key,
            "shape": node.shape,
            "batched": node.batched,
        }
        assert set(view.predecessors(node.name)) == set(node.inputs)
        assert all(position[i] < position[node.name] for i in node.inputs)
    assert view.nodes[FEATURES]["op"] == "features"
    assert view.nodes[LABELS]["batched"] is True


def test_shapes_agree_with_values() -> None:
    step_graph = trace(mlp(2, 3, 3), "cross_entropy", (2,))
    x, y = data_for("cross_entropy", 3)
    leaves = dict(step_graph.initial) | {FEATURES: x, LABELS: step_graph.loss.encode(y, 3)}
    values = evaluate(step_graph.graph, leaves)
    for node in step_graph.graph:
        lead = (len(x),) if node.batched else ()
        assert values[node.name].shape == (*lead, *node.shape), node.name
    assert torch.allclose(values[step_graph.output], mlp(2, 3, 3)(x), atol=TOL.torch)


def test_schedule_parts_the_nodes_at_the_sums() -> None:
    step_graph = trace(mlp(2, 3, 1), "bce", (2,))
    schedule = NodeOrder.of(step_graph)
    assert len(schedule.sums) == 4
    assert not any(n.op.key == "sum_samples" for n in (*schedule.before, *schedule.after))
    assert {step_graph.gradients[p] for p in step_graph.parameters} <= {
        n.name for n in schedule.all
    }
    assert not any(n.batched for n in (*schedule.sums, *schedule.after))


def test_graph_refuses_taken_names_and_foreign_nodes() -> None:
    graph = trace(mlp(2, 1), "bce", (2,)).graph
    with pytest.raises(EncodingError, match="exists"):
        graph.add(Features((2,)), name=FEATURES)
    other = trace(mlp(2, 3, 1), "bce", (2,)).graph
    with pytest.raises(EncodingError, match="no such node"):
        graph.add(Relu(), other["0:z"])
