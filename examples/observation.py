"""Make docs/images/observation.png: gradient against intervention on the constructed networks."""

from pathlib import Path

import torch

from heatproof.models.planted.constructed import CONSTRUCTED
from heatproof.proof.scatter import scatter
from heatproof.proof.subject import Subject
from heatproof.report.scatter import draw_scatter

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "observation.png"


def main() -> None:
    panels = {}
    for make in CONSTRUCTED.values():
        case = make((48, 64), seed=2)
        found = scatter(Subject(case.model, case.x, torch.tensor([[case.target]])), None, 4, "zero")
        panels[case.name] = (found.sensitivity[0, 0], found.effect[0, 0], float(found.correlation[0, 0]))
    print(draw_scatter(panels, TARGET))


if __name__ == "__main__":
    main()
