"""The registry: one row per method. Documentation, command line, report, audit and benchmark are made from it.

A method is a frozen dataclass of its options that is called with a `Tape` (one batch in front of one model) and
returns `Maps`. To add one: write it, add a row here, and `tests/test_every_method.py` does the rest.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from heatproof.errors import MethodError, nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Maps:
    """What a method returns.

    Args:
        raw: `(B, T, h, w)`, or `(B, T, 3, H, W)` for an attribution to the input's channels.
        maps: `(B, T, H, W)` where it is not `raw` resized, or summed over the channels.
        residual: `(B, T)` score minus everything accounted for.
        ledger: rows of what adds up to the residual.
        contributions: `(B, T, L, H, N)` of every token through every attention head; prefix tokens first.
        scanpath: `(B, n, 3)` predicted fixations: row, column, seconds.
        resolved: options whose default was decided by this model or batch, as the provenance says them.
    """

    raw: "Tensor"
    maps: "Tensor | None" = None
    residual: "Tensor | None" = None
    ledger: list[dict[str, Any]] | None = None
    contributions: "Tensor | None" = None
    scanpath: "Tensor | None" = None
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of options; `signed` says whether negative values mean evidence against."""

    signed: bool

    def __call__(self, tape: Any) -> Maps: ...


@dataclass(frozen=True)
class Row:
    """One method: its name, family, what it needs of a model, its paper, and where its code is."""

    name: str
    family: str
    needs: tuple[str, ...]
    paper: str
    place: str

    def kind(self) -> type:
        """The method's dataclass, imported when asked for."""
        module, name = self.place.split(":")
        return getattr(importlib.import_module(module), name)

    @property
    def options(self) -> dict[str, Any]:
        """Names of the options and their defaults."""
        return {f.name: f.default for f in dataclasses.fields(self.kind())}

    @property
    def summary(self) -> str:
        """First line of the method's docstring."""
        return (self.kind().__doc__ or "").strip().split("\n")[0]

    def __getitem__(self, key: str) -> Any:
        if key not in ("name", "family", "needs", "options", "paper", "summary"):
            raise KeyError(key)
        return getattr(self, key)


class Table(Sequence[Row]):
    """The registry as a table: a sequence of rows that also looks a method up by its name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {row.name: row for row in rows}

    @property
    def names(self) -> list[str]:
        """All method names, in order."""
        return list(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __contains__(self, item: object) -> bool:
        return item in self._rows or item in self._rows.values()

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return list(self._rows.values())[key]
        if key not in self._rows:
            raise MethodError(f"there is no method {key!r}.{nearest(key, self._rows)} hp.methods() lists them all.")
        return self._rows[key]

    def records(self) -> list[dict[str, Any]]:
        """Rows as plain dictionaries, for JSON and data frames."""
        keys = ("name", "family", "needs", "options", "paper", "summary")
        return [{key: row[key] for key in keys} for row in self]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = ["| method | family | needs | options | paper |", "| --- | --- | --- | --- | --- |"]
        for row in self:
            options = ", ".join(f"`{name}`" for name in row.options) or "–"
            lines.append(f"| `{row.name}` | {row.family} | {', '.join(row.needs) or 'no model'} | {options} | {row.paper} |")
        return "\n".join(lines)

    def __repr__(self) -> str:
        width = max(len(name) for name in self._rows)
        return "\n".join(f"{row.name:<{width}}  {row.family:<10} {row.summary}" for row in self)

    def _repr_markdown_(self) -> str:
        return self.markdown()


_CAM, _MASK, _GRAD, _BASE = "heatproof.cam.methods", "heatproof.cam.masking", "heatproof.gradients", "heatproof.baselines"
_MAP, _SLOPE, _INPUT = ("model", "layer"), ("model", "layer", "layer gradient"), ("model", "input gradient")
_AGAIN, _LOOK = ("model", "forwards"), ("model", "attention")
_UP, _TOKENS = "heatproof.bottom_up", "heatproof.tokens"
_LRP_PAPERS = "Bach et al. 2015; Montavon et al. 2019; Achtibat et al. 2024"

_TABLE = Table(
    [
        Row("mst", "bottom-up", (), "Tu et al. 2016", f"{_UP}.mst:MST"),
        Row("watershed", "bottom-up", (), "Cousty et al. 2018", f"{_UP}.watershed:Watershed"),
        Row("region-contrast", "bottom-up", (), "Cheng et al. 2015", f"{_UP}.region_contrast:RegionContrast"),
        Row("center-surround", "bottom-up", (), "Achanta et al. 2008", f"{_UP}.center_surround:CenterSurround"),
        Row("itti", "bottom-up", (), "Itti et al. 1998", f"{_UP}.itti:Itti"),
        Row("spectral-residual", "bottom-up", (), "Hou & Zhang 2007", f"{_UP}.spectral_residual:SpectralResidual"),
        Row("gbvs", "bottom-up", (), "Harel et al. 2006", f"{_UP}.gbvs:GBVS"),
        Row("entropy", "bottom-up", (), "Kadir & Brady 2001", f"{_UP}.entropy:Entropy"),
        Row("gradient", "gradients", _INPUT, "Simonyan et al. 2014", f"{_GRAD}:Gradient"),
        Row("gradient-x-input", "gradients", _INPUT, "Shrikumar et al. 2016", f"{_GRAD}:GradientXInput"),
        Row("integrated-gradients", "gradients", _AGAIN, "Sundararajan et al. 2017", f"{_GRAD}:IntegratedGradients"),
        Row("smoothgrad", "gradients", _AGAIN, "Smilkov et al. 2017", f"{_GRAD}:SmoothGrad"),
        Row("taylor", "gradients", _AGAIN, "Montavon et al. 2017", f"{_GRAD}:Taylor"),
        Row("cam", "cam", (*_MAP, "head"), "Zhou et al. 2016", f"{_CAM}:CAM"),
        Row("gradcam", "cam", _SLOPE, "Selvaraju et al. 2017", f"{_CAM}:GradCAM"),
        Row("gradcam++", "cam", _SLOPE, "Chattopadhay et al. 2018", f"{_CAM}:GradCAMPlusPlus"),
        Row("eigencam", "cam", _MAP, "Muhammad & Yeasin 2020", f"{_CAM}:EigenCAM"),
        Row("eigengradcam", "cam", _SLOPE, "Muhammad & Yeasin 2020, with gradients", f"{_CAM}:EigenGradCAM"),
        Row("xgradcam", "cam", _SLOPE, "Fu et al. 2020", f"{_CAM}:XGradCAM"),
        Row("hirescam", "cam", _SLOPE, "Draelos & Carin 2020", f"{_CAM}:HiResCAM"),
        Row("layercam", "cam", _SLOPE, "Jiang et al. 2021", f"{_CAM}:LayerCAM"),
        Row("scorecam", "cam", (*_MAP, "forwards"), "Wang et al. 2020", f"{_MASK}:ScoreCAM"),
        Row("ablationcam", "cam", (*_MAP, "forwards"), "Desai & Ramaswamy 2020", f"{_MASK}:AblationCAM"),
        Row("lrp", "relevance", ("model", "relevance"), _LRP_PAPERS, "heatproof.lrp.method:LRP"),
        Row(
            "legrad", "tokens", ("model", "attention", "attention gradient"), "Bousselham et al. 2024", f"{_TOKENS}.legrad:LeGrad"
        ),
        Row("rollout", "tokens", ("model", "attention"), "Abnar & Zuidema 2020", f"{_TOKENS}.rollout:Rollout"),
        Row("attention", "tokens", ("model", "attention"), "Dosovitskiy et al. 2021", f"{_TOKENS}.rollout:RawAttention"),
        Row("textspan", "tokens", ("model", "tokens"), "Gandelsman et al. 2024", "heatproof.tokens.textspan:TextSpan"),
        Row("chili", "tokens", ("model", "tokens"), "Kazmierczak et al. 2025", "heatproof.tokens.chili:Chili"),
        Row("random", "baseline", (), "Adebayo et al. 2018", f"{_BASE}:Random"),
        Row("center", "baseline", (), "Judd et al. 2009", f"{_BASE}:Center"),
        Row("edges", "baseline", (), "Sobel & Feldman 1968; Adebayo et al. 2018", f"{_BASE}:Edges"),
    ]
)


def methods() -> Table:
    """All methods as a table: name, family, what each needs, its options, its paper."""
    return _TABLE


def build(names: Sequence[str], options: dict[str, Any]) -> dict[str, Method]:
    """The named methods with their options; each takes those of the options that it knows.

    Raises:
        MethodError: no such method, or an option that none of them knows.
    """
    rows = [_TABLE[name] for name in names]
    known = {name: set(row.options) for name, row in zip(names, rows, strict=True)}
    for option in options:
        if not any(option in own for own in known.values()):
            every = sorted(set().union(*known.values()))
            raise MethodError(
                f"method {' and '.join(names)} has no option {option!r}.{nearest(option, every)} "
                f"Known: {', '.join(every) or 'none'}."
            )
    plain = {name: _plain(value) for name, value in options.items()}
    return {row.name: row.kind()(**{name: value for name, value in plain.items() if name in known[row.name]}) for row in rows}


def _plain(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's own, everything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
