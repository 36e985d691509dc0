"""Element counts for cost predictions, and all measured rates at which elements are processed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from milp_agt.bounds.gathered.passed import AT_ONCE as CHUNK
from milp_agt.bounds.gathered.tally import KEPT
from milp_agt.bounds.linear.intermediate import targets
from milp_agt.bounds.step import NodeOrder
from milp_agt.bounds.zonotope.owed import MOST
from milp_agt.bounds.zonotope.pieces import SHARE
from milp_agt.bounds.zonotope.state import fit_in, most_groups
from milp_agt.core.relaxation import Relaxation
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.exchange import Exchange
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS, StepGraph
from milp_agt.training.training import Training

FLOAT = 8  # bytes
# Boxes and temporaries alive at once for an element of a node in interval arithmetic.
LIVE_BOXES = 12
# Bytes of Python, torch and their libraries.
BASELINE = 288 * 2**20
# Tensors of the size of a coefficient alive at once in a backward pass.
LIVE_COEFFICIENTS = 6
# Elements of coefficients that one core propagates per second, and elements of boxes that it bounds.
# Measured on one core of a 2020s server with relu networks; only `auto` and defaults depend on them.
WALKED_PER_SECOND = 5e7
BOUNDED_PER_SECOND = 2e7
# Products of a sample with every parameter, of which only sums and the worst ones are computed; seconds of a
# step, however small.
SUMMED_PER_SECOND = 2e8
SECONDS_PER_STEP = 0.005
# The same of linear forms, of each step that a backward pass visits, and of one for intermediate bounds; and
# of a step of a zonotope.
FORMS_PER_STEP, WALK, INNER_WALK, ZONOTOPE_STEP = 0.008, 0.0015, 0.006, 0.03
# Seconds of one warm-started solve per row of the program.
SECONDS_PER_ROW = 1e-5
ROWS_PER_ELEMENT = 8
# Of listed selections: boxes and intercepts of one case kept for an element of a node with a sample axis;
# products per second of one core; work on the boxes of a case, where many share a pass, without linear
# forms; share of the rows of intermediate bounds that remain when nodes with an exact image are skipped.
LIVE_CASE_BOXES = 4
CASES_PER_SECOND = 2e10
LISTED_WORK = 0.35
SETTLED = 0.25
# Of listed data sets: elements of nodes that one core trains and bounds per second; how much more work
# each is where runs carry boxes; copies of the states of all runs alive at once.
TRAINED_PER_SECOND = 2.3e8
DEARER_BOXES = 4.5
LIVE_STATES = 4
# Multiply-adds of matrix products per second of one core.
MULTIPLIED_PER_SECOND = 5e9
# The work on an element of a node beside a first layer that is a sum over samples.
TOLD = 16
# Coefficients of nodes on symbols of their samples, of which there are so many at most, that a zonotope deals
# with per second: the first so many with searches beside, which do not grow further; and coefficients of the
# state on moves. Squares of coordinates beside its noise, and rows of flips; and numbers alive at once for
# each that says who owes how much of a node.
SYMBOLS = 64
SEARCHED, SEARCHED_PER_SECOND, FORMED_PER_SECOND, MOVED_PER_SECOND = 2**21, 2e6, 1.2e7, 3e6
ZONOTOPE_SQUARES, ZONOTOPE_ROWS, ZONOTOPE_OWED = 8, 640, 6


class Sizes:
    """Element counts and predictions of a run of ``steps`` steps.

    ``exposed`` samples may be poisoned; ``window`` and ``solved`` are the steps of backward passes and
    of programs, ``memory`` bytes.
    """

    def __init__(
        self,
        step_graph: StepGraph,
        batch: int,
        exposed: int,
        momentum: bool,
        steps: int,
        window: int,
        solved: int,
        memory: int,
    ) -> None:
        self.steps, self.window, self.solved, self.memory = steps, window, solved, memory
        self.schedule = schedule = NodeOrder.of(step_graph)
        self.batch, self.exposed = batch, exposed
        batched = [n for n in schedule.before if n.batched]
        self.state = step_graph.parameter_count * (2 if momentum else 1)
        self.per_sample = sum(n.signature.size for n in batched)
        self.boxes = self.per_sample * batch
        # Boxes of outer products are computed a few entries at a time.
        outer = schedule.outer_products.values()
        self.made = self.per_sample - sum(p.signature.size for p in outer)
        # Gradients of single samples enter a backward pass with one coefficient for all samples.
        summed = {n.inputs[0] for n in schedule.sums}
        exchanged = [n for n in batched if isinstance(n.op, Exchange)]
        summed |= {n.inputs[0] for n in exchanged}
        self.walked = sum(n.signature.size for n in batched if n.name not in summed) * batch
        own = [n.signature.size for n in batched if n.name not in summed]
        self.widest = max(own, default=1)
        self.inner_rows = 2 * batch * sum(n.signature.size for n in targets(schedule))
        leaves = (FEATURES, LABELS)
        self.moved = 1 + sum(n.signature.size for n in batched if n.name in leaves)
        self.curved = batch * sum(
            n.signature.size for n in batched if isinstance(n.op, (Einsum, Univariate))
        )

    def form(self, sample_chunk: int) -> int:
        """Bytes of one row of a backward pass: coefficients of one sample chunk and, with a window,
        moves of the samples met that can be poisoned, at least of a batch."""
        met = max(self.batch, min(self.batch * self.window, self.exposed)) if self.window else 0
        own = max(1, self.walked // self.batch) * sample_chunk
        return FLOAT * LIVE_COEFFICIENTS * (own + met * self.moved)

    def kept(self, states: int) -> int:
        """Bytes of the boxes and planes of a step in a window.

        Per number: two ends in each state, two slopes or centres, two intercepts in each state, and sizes
        of rounding; for a summed product only the charges of single samples. Data and their moves are cut
        anew.
        """
        own = self.walked // self.batch
        numbers = own * (4 * states + 4) + (self.per_sample - own) * 2 * (states - 1)
        numbers += 8 * self.moved
        return FLOAT * self.batch * numbers

    def zonotope(self, moved: int, met: Sequence[int], anew: bool) -> tuple[Sequence[float], int]:
        """Predicted seconds of each step and bytes of a zonotope; ``moved`` are the coordinates of one
        sample's moves, which have generators of their own in each step if data are poisoned ``anew``;
        ``met`` are the exposed samples met until each step. Forms of all samples of a batch are there
        at once as far as memory allows."""
        forms = self.batch * self.made * self.state
        samples = min(self.exposed, self.batch) * self.steps if anew else self.exposed
        moves = samples * (moved + 4)
        groups = 2 * min(self.steps + 1, most_groups(self.state, samples, self.memory))
        noise = groups * (self.state + 2 * samples)
        kept = moves if fit_in(self.state * samples * moved, self.memory) else 4 * samples
        numbers = self.state * (ZONOTOPE_SQUARES * self.state + noise + 3 * kept)
        numbers += ZONOTOPE_ROWS * moves
        numbers += ZONOTOPE_OWED * min(MOST, self.batch * self.widest * samples)
        size = min(FLOAT * forms, self.memory // SHARE) + FLOAT * numbers
        formed = self.batch * self.made * min(self.state, SYMBOLS)
        each = (
            ZONOTOPE_STEP + min(formed, SEARCHED) / SEARCHED_PER_SECOND + formed / FORMED_PER_SECOND
        )
        carried = (self.state * count * (moved + 4) for count in met)
        return [each + numbers / MOVED_PER_SECOND for numbers in carried], size

    def gathered(self, met: Sequence[int], budget: int) -> tuple[Sequence[float], int]:
        """The same of a zonotope whose first layer is a sum over samples: intervals, and what a budget buys
        among the samples met."""
        told = 2 * min(budget, KEPT) + 8
        size = FLOAT * (told * self.state + LIVE_BOXES * self.made * self.batch + 4 * CHUNK)
        walked = self.batch * self.made
        worked = [0.6 * self.boxes + 4 * self.batch * count + TOLD * walked for count in met]
        return [0.02 + self.stepped + each / BOUNDED_PER_SECOND for each in worked], size

    @property
    def pair(self) -> int:
        """Bytes of a form of one sample: coefficients on its nodes, its data and the parameters."""
        return FLOAT * LIVE_COEFFICIENTS * (self.walked // self.batch + self.state + self.moved)

    @property
    def walked_back(self) -> Sequence[int]:
        """Steps of the backward passes from the ends of each step."""
        return [min(t + 1, self.window) for t in range(self.steps)]

    @property
    def walks(self) -> int:
        """Those of all of them."""
        return sum(self.walked_back)

    @property
    def rows(self) -> int:
        """Rows of a program."""
        return ROWS_PER_ELEMENT * self.curved * self.solved

    @property
    def inner(self) -> float:
        """Predicted seconds of all linear intermediate bounds."""
        walks = sum(min(t, self.window - 1) + 0.5 for t in range(self.steps))
        return walks * (INNER_WALK + self.inner_rows * self.walked / WALKED_PER_SECOND)

    @property
    def linear(self) -> Sequence[float]:
        """Predicted seconds of linear forms in each step."""
        each = WALK + 4 * self.state * self.walked / WALKED_PER_SECOND
        return [FORMS_PER_STEP + each * count for count in self.walked_back]

    @property
    def stepped(self) -> float:
        """Predicted seconds of intervals in a step."""
        made = self.made * self.batch
        each = made / BOUNDED_PER_SECOND + (self.boxes - made) / SUMMED_PER_SECOND
        return SECONDS_PER_STEP + 2 * each

    @property
    def seconds(self) -> dict[Relaxation, float]:
        """Predicted seconds of all steps, jointly for all selections."""
        linear = sum(self.linear)
        return {
            Relaxation.INTERVAL: self.steps * self.stepped,
            Relaxation.LINEAR: linear,
            Relaxation.LP: 1.5 * linear + 2 * self.state * self.steps * self.rows * SECONDS_PER_ROW,
        }


def degree_of(schedule: NodeOrder, poison: Poison, training: Training) -> float:
    """The degree of a step as a polynomial in parameters and moves; infinite for what is none. Linear forms
    lose nothing where it is 1."""
    if poison.whole is not None or training.l1 or training.projection or training.clips_total:
        return math.inf
    moves = {FEATURES: poison.feature_moves, LABELS: poison.label_moves}
    degrees: dict[str, float] = {}
    for node in schedule.all:
        read = [degrees[name] for name in node.inputs]
        if not read:
            degree = 1.0 if moves.get(node.name, ...) is not None else 0.0
        elif isinstance(node.op, Einsum):
            degree = sum(read)
        elif isinstance(node.op, LinearMap | SumSamples) or not any(read):
            degree = max(read)
        else:
            degree = math.inf
        degrees[node.name] = degree
    return max(degrees[node.name] for _, node in schedule.gradients)
