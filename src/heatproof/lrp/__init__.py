"""Layer-wise relevance propagation on any network, with a ledger of where every unit of the score went."""

from heatproof.lrp.composites import Composite, Layer
from heatproof.lrp.coverage import coverage
from heatproof.lrp.method import LRP
from heatproof.lrp.pixels import Flat, WSquare, ZBox
from heatproof.lrp.rules import Epsilon, Passed, Rule, Zero
from heatproof.lrp.signs import AlphaBeta, Gamma, ZPlus

__all__ = ["LRP", "AlphaBeta", "Composite", "Epsilon", "Flat", "Gamma", "Layer", "Passed", "Rule", "WSquare", "ZBox",
           "ZPlus", "Zero", "coverage"]  # fmt: skip
