"""Score maps that need no model against human fixations, over a data set."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter

from heatproof.errors import HeatproofError, InputError, MethodError
from heatproof.explain import explain
from heatproof.images import read_image
from heatproof.methods import methods
from heatproof.proof import fixations as scores
from heatproof.proof.bootstrap import Mean, bootstrap_mean
from heatproof.proof.fixation_data import Viewed
from heatproof.storage import written_whole

FLOOR = 0.05
"""Share of the uniform distribution in what information gain compares: heat maps have zeros, and one costs 36 bits."""

SCORES = {
    "auc_judd": "AUC-Judd",
    "auc_borji": "AUC-Borji",
    "auc_shuffled": "sAUC",
    "nss": "NSS",
    "cc": "CC",
    "sim": "SIM",
    "kl": "KL ↓",
    "information_gain": "IG",
}
"""What is told of each map, and the heads of its columns; of `kl` alone less is better."""

CENTRED = " × centre"

Maker = Callable[[Image.Image], Mapping[str, Float[np.ndarray, "height width"]]]


@dataclass(frozen=True)
class Scored:
    """What came of one image: scores by map and name, or a sentence that says why there are none."""

    name: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None


def model_free(names: Sequence[str] | None = None) -> list[str]:
    """The methods that are scored here: they need no model, and the centre is always among them, to compare with.

    Args:
        names: of methods, None for all that need no model.

    Raises:
        MethodError: no such method, or one that needs a model.
    """
    free = [row.name for row in methods() if not row.needs]
    for name in names or ():
        if methods()[name].needs:
            raise MethodError(
                f"method {name!r} needs a model; fixations are compared with those that need none: {', '.join(free)}."
            )
    return list(dict.fromkeys([*names, "center"])) if names else free


def by_methods(names: Sequence[str]) -> Maker:
    """What makes the maps of one image: the named methods."""

    def make(image: Image.Image) -> dict[str, np.ndarray]:
        made = explain(None, image, list(names))
        assert isinstance(made, dict)  # a list of methods went in
        return {name: one.map.numpy().astype(np.float64) for name, one in made.items()}

    return make


def score_images(data: Sequence[Viewed], make: Maker, blur: float = 0.0) -> Iterator[Scored]:
    """Score the maps of each image, each also multiplied by a centre prior.

    Args:
        data: the images and their fixations.
        make: from an image to its maps by name.
        blur: σ in degrees of visual angle of a Gaussian that smooths every map first, 0 for none: eye trackers are
            exact to about one degree, and the benchmark's authors smooth each map as it suits it best.

    Yields:
        One `Scored` per image, in order.

    Raises:
        InputError: a blur that is not 0 or more.
    """
    if not 0 <= blur < float("inf"):
        raise InputError(f"blur={blur!r}; expected degrees, 0 or more.")
    for n, viewed in enumerate(data):
        try:
            yield Scored(viewed.name, _score_one(viewed, [one for k, one in enumerate(data) if k != n], make, blur))
        except HeatproofError as error:
            yield Scored(viewed.name, error=f"{str(viewed.path)!r}: {error}")


def _score_one(viewed: Viewed, others: Sequence[Viewed], make: Maker, blur: float) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, heat in make(read_image(viewed.path)).items():
        size = (heat.shape[0], heat.shape[1])
        if blur and name != "center":
            heat = gaussian_filter(heat, blur * scores.SPREAD * max(size), mode="nearest")
        prior = scores.centre_prior(size)
        points = viewed.points(size)
        density = scores.fixation_density(points, size)
        # every other image's fixations, at the same share of height and width
        elsewhere = np.concatenate([np.empty((0, 2)), *(one.points(size) for one in others)])
        # the centre times itself is no more than a narrower centre
        kinds = {name: heat} if name == "center" else {name: heat, name + CENTRED: (heat - heat.min()) * prior}
        for kind, values in kinds.items():
            found[kind] = {
                "auc_judd": scores.auc_judd(values, points),
                "auc_borji": scores.auc_borji(values, points),
                "auc_shuffled": scores.auc_shuffled(values, points, elsewhere) if len(elsewhere) else float("nan"),
                "nss": scores.nss(values, points),
                "cc": scores.cc(values, density),
                "sim": scores.sim(values, density),
                "kl": scores.kl(values - values.min(), density),
                "information_gain": scores.information_gain(values, points, prior, FLOOR),
            }
    return found


def summary(rows: Sequence[Scored], seed: int = 0) -> dict[str, dict[str, Mean]]:
    """Mean and 95 % confidence interval of each score over the images, by map, the best AUC-Judd first.

    Raises:
        InputError: no image was scored.
    """
    done = [row.scores for row in rows if row.error is None]
    if not done:
        raise InputError("no image could be scored; the lines above say why.")
    table = {
        kind: {name: bootstrap_mean(np.array([one[kind][name] for one in done]), seed=seed) for name in SCORES}
        for kind in done[0]
    }
    return dict(sorted(table.items(), key=lambda item: -item[1]["auc_judd"].value))


def told(mean: Mean) -> str:
    """A mean, and half the width of its interval, as the table shows them."""
    return f"{mean.value:z.3f} ±{(mean.high - mean.low) / 2:.3f}"


def document(
    table: Mapping[str, Mapping[str, Mean]], rows: Sequence[Scored], failed: Mapping[str, str], blur: float = 0.0
) -> dict[str, Any]:
    """Everything in plain values, for JSON: the summary, each image's scores, and why images failed."""
    return {
        "summary": [{"map": kind, **{name: _plain(asdict(mean)) for name, mean in row.items()}} for kind, row in table.items()],
        "images": {row.name: {kind: _plain(one) for kind, one in row.scores.items()} for row in rows if row.error is None},
        "failed": dict(failed),
        "conventions": {
            "blur": f"{blur:g} degrees, of every map but the centre",
            "interval": "95 %, bootstrap over images",
            "auc_borji": "exact curve, 100 draws",
            "auc_shuffled": "exact curve, all other images' fixations",
            "information_gain": f"bits over the centre prior, {FLOOR:g} of both uniform",
        },
    }


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def write(
    table: Mapping[str, Mapping[str, Mean]], rows: Sequence[Scored], failed: Mapping[str, str], folder: Path, blur: float = 0.0
) -> tuple[Path, Path]:
    """Write `fixations.png`, a bar chart, and `scores.json`, all figures.

    Returns:
        Their paths.

    Raises:
        InputError: the folder cannot be written to.
    """
    chart = draw(table, folder / "fixations.png", sum(row.error is None for row in rows))
    file = folder / "scores.json"  # fixations.json is the data set's own
    with written_whole(file, "the scores", "choose another folder with -o") as temporary:
        temporary.write_text(json.dumps(document(table, rows, failed, blur), indent=1, allow_nan=False), "utf-8")
    return chart, file


def draw(table: Mapping[str, Mapping[str, Mean]], path: Path, count: int) -> Path:
    """Write a bar chart of AUC-Judd, shuffled AUC and NSS with their intervals.

    Args:
        table: of `summary`.
        path: of the PNG.
        count: of images, for the title.

    Raises:
        InputError: the file cannot be written.
    """
    from heatproof.report.bars import bars

    panels = {
        "AUC-Judd (chance 0.5)": ("auc_judd", 0.5),
        "shuffled AUC (chance 0.5)": ("auc_shuffled", 0.5),
        "NSS (chance 0)": ("nss", 0.0),
    }
    values = {
        title: {kind: (row[name].value, row[name].low, row[name].high) for kind, row in table.items()}
        for title, (name, _) in panels.items()
    }
    title = f"Human fixations in {count} images: mean and 95 % interval"
    return bars(values, {title: chance for title, (_, chance) in panels.items()}, title, path)
