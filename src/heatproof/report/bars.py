"""Bar charts with intervals."""

from collections.abc import Mapping
from pathlib import Path

from heatproof.storage import written_whole


def bars(
    panels: Mapping[str, Mapping[str, tuple[float, float, float]]], zero: Mapping[str, float], title: str, path: Path
) -> Path:
    """Write horizontal bars, one panel per score, the rows the same in all of them.

    Args:
        panels: by the title of the panel: `(value, low, high)` by row.
        zero: by the title of the panel: where its bars begin, which is what chance would get.
        title: of the whole.
        path: of the PNG.

    Returns:
        The path.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no window, no state that others share

    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(2 + 3 * len(panels), 1.2 + 0.26 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    rows = range(len(names))
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        start = zero[label]
        axis.barh(rows, [values[name][0] - start for name in names], left=start, color="#4c72b0", height=0.7)
        for row, name in enumerate(names):
            axis.plot(values[name][1:], [row, row], color="#222222", linewidth=1.5)
        axis.axvline(start, color="#222222", linewidth=0.8)
        axis.set_title(label, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=9, left=False)
    axes[0].set_yticks(rows, names)
    axes[0].invert_yaxis()
    with written_whole(path, "the chart") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path
