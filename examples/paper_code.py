"""Mean widths of the parameters after 20 steps: the public code of the paper, this project, and real attacks.

    python examples/paper_code.py

The figures of the paper's code are kept in data/paper_code.json. It bounds an adversary who poisons anew in
every step, and so do the two columns after it. The last two are about data that are poisoned once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from models.recorded import Recorded

import milp_agt as agt

DATA = Path(__file__).parent / "data"


def width(case: Recorded, threat: agt.FeaturePoisoning, steps: int, relaxation: str) -> float:
    """The mean width that is certified."""
    training = case.training(steps)
    found = agt.certify(case.model, case.train, training, threat, relaxation=relaxation)
    return found.reachable.mean_width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="one row of three steps")
    small = parser.parse_args().small
    known = json.loads((DATA / "paper_code.json").read_text())["runs"]
    print(
        "run          threat        paper's code   interval   defaults   poisoned once    attacks"
    )
    for row in known[:1] if small else known:
        case = Recorded.load(DATA / f"{row['run']}.npz")
        steps = 3 if small else case.steps
        anew = agt.FeaturePoisoning(row["budget"], row["radius"], scope="batch", static=False)
        once = agt.FeaturePoisoning(row["budget"], row["radius"])
        search = agt.Search(pool=64, restarts=1, rounds=0) if small else agt.Search()
        training = case.training(steps)
        theirs = "(20 steps)" if small else f"{row['mean_width']:.4g}"
        reached = agt.attack(case.model, case.train, training, once, search=search).mean_width
        print(
            f"{row['run']:<12} {row['budget']:>3} at {row['radius']:<6} {theirs:>12} "
            f"{width(case, anew, steps, 'interval'):>10.4g} {width(case, anew, steps, 'linear'):>10.4g} "
            f"{width(case, once, steps, 'linear'):>15.4g} {reached:>10.4g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
