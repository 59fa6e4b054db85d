"""The lecture's arguments about relevance, as numbers and one picture: `python examples/lrp_lecture.py [FOLDER]`.

1. Conservation alone is not enough: two explanations that both add up to the score, of which one is wrong.
2. On ReLU networks LRP-0 is gradient × input.
3. LRP is a Taylor decomposition of every neuron around a root point.
4. ε makes maps sparser, γ suppresses negative relevance: curves over both, and maps, on a photo.

The photo is scikit-image's `chelsea` (Stefan van der Walt, CC0).
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import skimage
import torch
from PIL import Image
from torch import Tensor, nn

import heatproof as hp
from heatproof.lrp import Composite, Epsilon, Gamma

PHOTO = Path(skimage.__file__).parent / "data" / "chelsea.png"
EPSILONS = (1e-6, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
GAMMAS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def conserving_but_wrong(weight: Tensor, features: Tensor, bias: float) -> tuple[Tensor, Tensor]:
    """Two explanations of `f = Σ_j w_j φ_j + b` that both sum to `f`.

    By size, `R_j = |w_j φ_j| / Σ_i |w_i φ_i| · f`, and the contributions themselves, `R_j = w_j φ_j + b/V`.

    Args:
        weight, features: `(V,)`.
        bias: `b`.

    Returns:
        `(V,)` each. Only the second says what happens to `f` when a feature is taken away.
    """
    products = weight * features
    score = products.sum() + bias
    return products.abs() / products.abs().sum() * score, products + bias / len(products)


def effect_of_removal(weight: Tensor, features: Tensor) -> Tensor:
    """`f(φ) − f(φ with φ_j = 0)` for every feature: what a true explanation of a linear model must say."""
    return torch.stack([weight[j] * features[j] for j in range(len(weight))])


def taylor_of_a_neuron(weight: Tensor, bias: Tensor, a: Tensor, root: Tensor) -> Tensor:
    """First-order terms of a ReLU neuron around a root point: `∂z/∂a_j · (a_j − ã_j)`.

    Args:
        weight, a, root: `(V,)`. bias: scalar.

    Returns:
        `(V,)`; with the root at zero this is LRP-0, on the segment from `a` along `a ⊙ (w > 0)` it is z⁺.
    """
    point = a.clone().requires_grad_()
    torch.relu(weight @ point + bias).backward()
    return point.grad * (a - root)


def root_along(weight: Tensor, bias: Tensor, a: Tensor, direction: Tensor) -> Tensor:
    """The point `a − t · direction` where the neuron is zero."""
    return a - direction * (weight @ a + bias) / (weight @ direction)


def sparsity(heat: Tensor) -> float:
    """Gini index of `|R|`: 0 when all pixels have the same share, 1 when one has everything."""
    shares = heat.abs().flatten().double().sort().values
    return float(1 - 2 * (shares.cumsum(0) / shares.sum()).mean())


def negative_share(heat: Tensor) -> float:
    """Part of `Σ|R|` that is negative."""
    return float(heat.clamp(max=0).abs().sum() / heat.abs().sum())


def curves(model: hp.Model, x: Tensor) -> tuple[list[hp.Explanation], list[hp.Explanation]]:
    """The photo under ε everywhere and under γ everywhere, for each value."""
    sparse = [hp.explain(model, x, "lrp", composite="epsilon", epsilon=e) for e in EPSILONS]
    positive = [hp.explain(model, x, "lrp", composite=Composite(Gamma(g), Gamma(g))) for g in GAMMAS]
    return sparse, positive


def small_network() -> nn.Module:
    """A ReLU network without surprises."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)
        ).eval()


def main(folder: Path) -> None:
    weight, features = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, 2.0])
    by_size, contributions = conserving_but_wrong(weight, features, 0.6)
    print("score", round(float(weight @ features + 0.6), 3), "= sum of each of these")
    print("  by size        ", by_size.tolist())
    print("  contributions  ", contributions.tolist())
    print("  f(φ) − f(φ∖j)  ", effect_of_removal(weight, features).tolist())

    net = small_network()
    x = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    lrp0 = hp.explain(net, x, "lrp", composite="lrp0")
    product = hp.explain(net, x, "gradient-x-input")
    print("LRP-0 and gradient × input differ by at most", float((lrp0.raw - product.raw).abs().max()))

    model = hp.load("efficientnet-lite0")
    photo = model.tensor([PHOTO])
    sparse, positive = curves(model, photo)
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), constrained_layout=True)
    for row, (values, name, explanations, measure, label) in enumerate(
        (
            (EPSILONS, "ε", sparse, sparsity, "Gini index of |R|"),
            (GAMMAS, "γ", positive, negative_share, "negative share of |R|"),
        )
    ):
        places = range(len(values))
        axes[row, 0].plot(places, [measure(ex.map) for ex in explanations], "o-")
        axes[row, 0].set_xticks(places, [f"{value:g}" for value in values], fontsize=7)
        axes[row, 0].set_xlabel(name)
        axes[row, 0].set_title(label, fontsize=9)
        for column, pick in enumerate((0, 3, 5), 1):
            axes[row, column].imshow(explanations[pick].overlay())
            axes[row, column].set_title(f"{name} = {values[pick]:g}", fontsize=9)
            axes[row, column].axis("off")
    figure.savefig(folder / "lrp-lecture.png", dpi=80)
    plt.close(figure)
    with Image.open(folder / "lrp-lecture.png") as sheet:  # 128 colours are enough, at a third of the size
        sheet.convert("RGB").quantize(128).save(folder / "lrp-lecture.png", optimize=True)
    print(folder / "lrp-lecture.png")

    five_lines()


def five_lines() -> None:
    """A composite of one's own, and where the score went."""
    mine = Composite(convolution=Gamma(0.1), linear=Epsilon(0.01), choose=lambda layer: Gamma(0.5) if layer.depth < 0.3 else None)
    model = hp.load("efficientnet-lite0")
    ex = hp.explain(model, PHOTO, "lrp", composite=mine, ledger=True)
    print(f"score {float(ex.scores):.4f} = map {float(ex.raw.sum()):.4f} + residual {float(ex.residual):.4f}")
    for row in sorted(ex.ledger, key=lambda row: -abs(row["bias"]))[:3]:
        print(f"  {row['place']:30} {row['op']:18} bias {row['bias']:+.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "docs" / "images")
