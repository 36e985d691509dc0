"""The graph, and values, boxes and gradients of its operations."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from checks_rules import (
    check_interval,
    check_isotonic,
    check_point_is_exact,
    check_relax,
    check_residual,
    no_nones,
    random_coefficients,
)
from checks_steps import mlp
from draws import (
    KINDS,
    MODERATE,
    TOL,
    Draw,
    all_instances,
    draws,
    make_box,
    make_boxes,
    non_leaves,
    univariate_instances,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from instances import INSTANCES, SAMPLES, Instance, per_sample
from same_run import MODELS, data_for, shared_module, shared_parameter

from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import evaluate
from milp_agt.errors import EncodingError
from milp_agt.formulations import interval_products
from milp_agt.formulations.leaves import Constant, Features, Labels, ParameterLeaf
from milp_agt.formulations.relu import Relu
from milp_agt.training.tracing import FEATURES, LABELS, trace

FAST = settings(max_examples=8, deadline=None, derandomize=True)
BOUNDED = [i for i in all_instances() if i.has_interval]


def test_every_operation_has_instances() -> None:
    assert set(INSTANCES) == set(non_leaves())
    for key, group in INSTANCES.items():
        assert group, f"operation '{key}' has no instance: add one to INSTANCES"
        assert all(i.op.key == key for i in group)
    names = [i.label for i in all_instances()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("instance", BOUNDED, ids=str)
@FAST
@given(draw=draws())
@example(draw=Draw(KINDS, ("apart",), 1))
def test_intervals_hold_values_shrink_with_boxes_and_end_in_points(
    instance: Instance, draw: Draw
) -> None:
    rng = draw.rng
    boxes = make_boxes(instance, draw.kinds, draw.relations, rng)
    check_interval(instance, boxes, rng)
    check_isotonic(instance, boxes, rng)
    check_point_is_exact(instance, make_boxes(instance, draw.kinds, ("single",), rng))


@pytest.mark.parametrize("instance", INSTANCES["bilinear"], ids=str)
@pytest.mark.parametrize("limit", [0, 2**25], ids=["midpoint radius", "ends"])
@FAST
@given(draw=draws())
def test_products_by_matrices_hold_sampled_values(
    instance: Instance, limit: int, draw: Draw
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval_products, "EXACT_PRODUCTS_LIMIT", limit)
        patch.setattr(interval_products, "THICK", 0)
        rng = draw.rng
        boxes = make_boxes(instance, draw.kinds, draw.relations, rng)
        check_interval(instance, boxes, rng)
        check_relax(instance, boxes, rng)


@pytest.mark.parametrize("instance", all_instances(), ids=str)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(draw=draws(), uniform=st.booleans())
@example(draw=Draw(KINDS, ("apart",), 2), uniform=False)
@example(draw=Draw(KINDS, ("apart",), 2), uniform=True)
def test_linear_bounds_hold(instance: Instance, draw: Draw, uniform: bool) -> None:
    rng = draw.rng
    check_relax(instance, make_boxes(instance, draw.kinds, draw.relations, rng), rng, uniform)


@pytest.mark.parametrize("instance", all_instances(), ids=str)
def test_uniform_coefficients_pull_like_repeated_ones(instance: Instance) -> None:
    if not instance.out.batched:
        return
    rng = np.random.default_rng(0)
    boxes = make_boxes(instance, MODERATE, ("nested",), rng)
    planes = instance.op.relax(*boxes)
    c = random_coefficients(instance, 4, True, rng)
    wide = c.expand(-1, SAMPLES, *instance.out.shape).contiguous()
    repeated = no_nones(planes.backward(wide), wide, instance)
    once = no_nones(planes.backward(c), c, instance)
    for uniform, each, signature in zip(once, repeated, instance.inputs, strict=True):
        target = (4, SAMPLES, *signature.shape) if signature.batched else (4, *signature.shape)
        size = 1e-12 * (1.0 + each.abs())
        assert bool(((uniform.expand(target) - each.expand(target)).abs() <= size).all())


@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(draw=draws())
def test_residual_is_exact_for_any_slope(instance: Instance, draw: Draw) -> None:
    box = make_box(per_sample(4), draw.kinds, "single", draw.rng, instance.domain)
    low, high = box.lower[0].flatten().numpy(), box.upper[0].flatten().numpy()
    check_residual(instance, low, high, grid=501)


@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
def test_residual_is_exact_on_a_dense_table(instance: Instance) -> None:
    rng = np.random.default_rng(3)
    box = make_box(per_sample(8), KINDS, "single", rng, instance.domain)
    low, high = box.lower[0].flatten().numpy(), box.upper[0].flatten().numpy()
    check_residual(instance, low, high, grid=1501)


def test_exponential_has_a_kink_at_its_cap() -> None:
    low, high = np.array([600.0, 699.0, 700.0, 650.0]), np.array([800.0, 1e4, 900.0, 700.0])
    check_residual(INSTANCES["exponential"][0], low, high)


def test_a_leaf_has_no_rules_but_the_constant() -> None:
    constant = Constant.of(torch.tensor([1.0, 2.0]))
    assert constant.interval().contains(constant.value())
    for leaf in (ParameterLeaf((2,)), Features((2,)), Labels((2,))):
        for rule in (leaf.value, leaf.interval, leaf.relax):
            with pytest.raises(EncodingError):
                rule()


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
