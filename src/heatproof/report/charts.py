"""Small drawings for the page, as SVG that is readable on light and on dark paper."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

_MAP, _NULL, _INK = "#d9622b", "#8a8f99", "#808690"
"""The map's colour, the null's, and the axes': matplotlib wants a colour, the page gives it another."""

_INCHES = (2.9, 2.1)
"""Of the drawing; the page stretches it to the width of a card, and its letters with it."""

_ROW = 36
"""Letters that fit above the axes."""

_LEGEND: dict[str, Any] = {
    "frameon": False, "fontsize": 8, "labelcolor": _INK, "handlelength": 1.2, "columnspacing": 1.0, "borderpad": 0.0,
}  # fmt: skip

_OTHERS = ("#3f7fd9", "#2a9d6f", "#a05bc4", "#b08d1a", "#c4507a")


def curve(
    x: Float[np.ndarray, " steps"],
    y: Float[np.ndarray, " steps"],
    null: Float[np.ndarray, "copies steps"],
    labels: tuple[str, str],
    *,
    level: float = 0.95,
) -> str:
    """One map's curve over the band that its null maps fill.

    Args:
        x: where, in the unit of the first label.
        y: the map's values.
        null: the same of K null maps; K may be 0.
        labels: of the axes.
        level: share of the null maps inside the band.

    Returns:
        An SVG element.
    """

    def draw(axes: Any) -> None:
        if len(null):
            low, high = np.quantile(null, [(1 - level) / 2, (1 + level) / 2], axis=0)
            axes.fill_between(x, low, high, color=_NULL, alpha=0.35, linewidth=0, label=f"{level:.0%} of null maps")
            axes.plot(x, np.median(null, 0), color=_NULL, linewidth=1, linestyle="--")
        axes.plot(x, y, color=_MAP, linewidth=2, label="this map")

    return _svg(draw, labels)


def distribution(value: float, null: Float[np.ndarray, " copies"], named: Mapping[str, float], label: str) -> str:
    """One map's effect in the histogram of its null maps' effects, named comparisons beside it.

    Args:
        value: of the map.
        null: of K null maps.
        named: of further maps, by name.
        label: of the axis.

    Returns:
        An SVG element.
    """

    def draw(axes: Any) -> None:
        spread = np.ptp(null) if len(null) else 0.0
        axes.hist(null, bins=min(30, max(5, len(null) // 6)) if spread > 0 else 1, color=_NULL, alpha=0.6, label="null maps")
        axes.axvline(value, color=_MAP, linewidth=2, label="this map")
        for colour, (name, one) in zip(_OTHERS, named.items(), strict=False):
            axes.axvline(one, color=colour, linewidth=1.6, linestyle=":", label=name)

    return _svg(draw, (label, "null maps"))


def stages(names: Sequence[str], series: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str) -> str:
    """Similarity after each stage of a cascade of randomisations, one line per measure.

    Args:
        names: of the stages, in order; short ones, for there is little room.
        series: mean and standard deviation by stage, by name of the measure.
        label: of the vertical axis.

    Returns:
        An SVG element.
    """

    def draw(axes: Any) -> None:
        places = np.arange(len(names))
        for colour, (name, (mean, spread)) in zip((_MAP, *_OTHERS), series.items(), strict=False):
            middle, width = np.asarray(mean, float), np.asarray(spread, float)
            axes.fill_between(places, middle - width, middle + width, color=colour, alpha=0.2, linewidth=0)
            axes.plot(places, middle, color=colour, linewidth=1.6, marker=".", markersize=4, label=name)
        few = places[:: max(1, len(places) // 6)]
        axes.set_xticks(few, [str(names[n]) for n in few])
        axes.axhline(0, color=_INK, linewidth=0.6)

    return _svg(draw, ("randomised up to stage", label))


def points(x: Float[np.ndarray, " regions"], y: Float[np.ndarray, " regions"], labels: tuple[str, str]) -> str:
    """A scatter plot of regions.

    Args:
        x: of each region.
        y: of each region.
        labels: of the axes.

    Returns:
        An SVG element.
    """

    def draw(axes: Any) -> None:
        axes.axhline(0, color=_INK, linewidth=0.6)
        axes.scatter(x, y, s=12, color=_MAP, alpha=0.75, linewidths=0)

    return _svg(draw, labels)


def _svg(draw: Callable[[Any], None], labels: tuple[str, str]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas  # not pyplot: no window, no state that others share

    # text stays text: smaller, searchable, and in the page's own font
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "heatproof", "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Canvas(figsize=_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        axes.set_xlabel(labels[0], color=_INK)
        axes.set_ylabel(labels[1], color=_INK)
        axes.tick_params(colors=_INK, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        lines, names = axes.get_legend_handles_labels()
        if names:  # above the axes, where it hides nothing
            widest = sum(sorted(map(len, names))[-3:])
            figure.legend(lines, names, loc="outside upper center", ncols=3 if widest <= _ROW else 2, **_LEGEND)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")  # the page's own ink, on light and on dark paper
    return re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1), count=1)
