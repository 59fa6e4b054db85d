"""Sensitivity against effect, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heatproof.errors import InputError
from heatproof.storage import written_whole


def draw_scatter(panels: Mapping[str, tuple[Any, Any, float]], path: Path, title: str = "") -> Path:
    """Write one panel per map: each region a point, what is said of it to the right, what its removal costs upwards.

    Args:
        panels: by the panel's title: sensitivity `(R,)`, effect `(R,)` (NaN left out), and their rank correlation.
        path: of the picture; its ending decides the format (png, svg, pdf).
        title: of the whole.

    Returns:
        The path.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no window, no state that others share

    figure = Figure(figsize=(0.6 + 3.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axis, (label, (said, lost, correlation)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axis.axhline(0, color="#222222", linewidth=0.8)
        axis.scatter(said, lost, s=14, alpha=0.6, color="#4c72b0", edgecolors="none")
        axis.set_title(f"{label}\nrank correlation {correlation:.2f}", fontsize=10)
        axis.set_xlabel("sensitivity (what the map says)", fontsize=9)
        axis.margins(x=0.05, y=0.1)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.ticklabel_format(style="sci", scilimits=(-3, 4))
    figure.axes[0].set_ylabel("effect (score lost without the region)", fontsize=9)
    try:
        with written_whole(path, "the chart") as temporary:
            figure.savefig(temporary, dpi=120, format=path.suffix.lstrip(".") or "png")
    except ValueError as error:
        raise InputError(f"the chart cannot be written to {str(path)!r} ({error}); choose another ending.") from error
    return path
