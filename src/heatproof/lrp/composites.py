"""Composites: which rule goes where, by what an operation is and how deep it lies."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from heatproof.errors import MethodError, nearest
from heatproof.lrp.pixels import Flat, ZBox
from heatproof.lrp.rules import Epsilon, Rule, Zero, check_number
from heatproof.lrp.signs import Gamma, ZPlus


@dataclass(frozen=True)
class Layer:
    """What a composite is told of a weighted layer.

    Args:
        place: name of the module that runs it.
        kind: `"convolution"` or `"linear"`.
        depth: from 0 at the first weighted layer to 1 at the last.
        pixels: whether it sees the image itself.
        top: whether it is the last one.
    """

    place: str
    kind: str
    depth: float
    pixels: bool
    top: bool


@dataclass(frozen=True)
class Composite:
    """Places rules by operation and depth.

    `Composite(convolution=Gamma(0.25), linear=Epsilon(1e-6), pixels=ZBox())`

    Args:
        convolution, linear: rules by operation.
        pixels: rule of the layers that see the image; None takes that of the operation.
        top: rule of the last layer; None takes that of the operation.
        choose: called with each `Layer`; a rule that it returns goes before all the others, None leaves them.
        products: what a product of two signals does. `"signal"`: attention weights and gates are constants and the
            relevance follows the signal, all of it. `"uniform"`: half to each factor, and through the softmax, as in
            AttnLRP.
    """

    convolution: Rule = field(default_factory=Zero)
    linear: Rule = field(default_factory=Zero)
    pixels: Rule | None = None
    top: Rule | None = None
    choose: Callable[[Layer], Rule | None] | None = None
    products: Literal["signal", "uniform"] = "signal"

    def __post_init__(self) -> None:
        for name in ("convolution", "linear", "pixels", "top"):
            value = getattr(self, name)
            if not (isinstance(value, Rule) or (value is None and name in ("pixels", "top"))):
                raise MethodError(f"{name}={value!r} in a Composite; expected a rule, such as Gamma(0.25) or Epsilon(1e-6).")
        if self.choose is not None and not callable(self.choose):
            raise MethodError(f"choose={self.choose!r} in a Composite; expected a function from a Layer to a rule or None.")
        if self.products not in ("signal", "uniform"):
            raise MethodError(f"products={self.products!r} in a Composite; expected 'signal' or 'uniform'.")

    def rule(self, layer: Layer) -> Rule:
        """The rule for one layer.

        Raises:
            MethodError: a rule for pixels was placed above them, or `choose` returned no rule.
        """
        chosen = self.choose(layer) if self.choose else None
        if chosen is not None and not isinstance(chosen, Rule):
            raise MethodError(f"choose() of a Composite returned {chosen!r} for {layer.place!r}; expected a rule or None.")
        chosen = chosen or (self.pixels if layer.pixels else None) or (self.top if layer.top else None)
        chosen = chosen or (self.convolution if layer.kind == "convolution" else self.linear)
        if chosen.pixels_only and not layer.pixels:
            raise MethodError(
                f"{type(chosen).__name__} is a rule for the layer that sees the image, and {layer.place!r} does not; place it "
                "with pixels=."
            )
        return chosen

    @property
    def needs_input(self) -> bool:
        """Whether some rule reads a layer's input."""
        return self.choose is not None or any(r.needs_input for r in (self.convolution, self.linear, self.top) if r)

    @property
    def needs_output(self) -> bool:
        """Whether some rule reads a layer's output."""
        return self.choose is not None or any(r.needs_output for r in (self.convolution, self.linear, self.top) if r)


NAMES = ("auto", "lrp0", "epsilon", "epsilon-gamma-box", "epsilon-plus-flat", "attnlrp")


def composite(name: str | Composite, epsilon: float | None, gamma: float | None, attention: bool) -> Composite:
    """A composite by its name.

    `lrp0`: LRP-0 everywhere. `epsilon`: ε everywhere. `epsilon-gamma-box`: 0 on top, ε in linear layers, γ in
    convolutions, zᴮ at the pixels. `epsilon-plus-flat`: ε in linear layers, z⁺ in convolutions, flat at the pixels.
    `attnlrp`: ε, and AttnLRP's rules for products and softmax. `auto`: `epsilon-gamma-box` for convolutional networks;
    with attention γ in convolutions and linear layers as well, attention weights constant.

    Args:
        name: one of them, or a composite, which is returned as it is.
        epsilon: of the ε rules; None is 1e-6.
        gamma: of the γ rules; None is 0.25.
        attention: whether the network has any.

    Raises:
        MethodError: no such composite, or a negative ε or γ.
    """
    for label, value in (("epsilon", epsilon), ("gamma", gamma)):
        if value is not None:
            check_number(label, value)
    if isinstance(name, Composite):
        return name
    weak = Epsilon(1e-6 if epsilon is None else float(epsilon))
    boost = Gamma(0.25 if gamma is None else float(gamma))
    gamma_box = Composite(convolution=boost, linear=weak, pixels=ZBox(), top=Zero())
    by_name = {
        "lrp0": Composite(),
        "epsilon": Composite(convolution=weak, linear=weak),
        "epsilon-gamma-box": gamma_box,
        "epsilon-plus-flat": Composite(convolution=ZPlus(), linear=weak, pixels=Flat()),
        "attnlrp": Composite(convolution=weak, linear=weak, products="uniform"),
        "auto": replace(gamma_box, linear=Gamma(0.05 if gamma is None else boost.gamma)) if attention else gamma_box,
    }
    if not isinstance(name, str) or name not in by_name:
        known = ", ".join(NAMES)
        raise MethodError(f"there is no composite {name!r}.{nearest(str(name), NAMES)} Known: {known}, or a Composite.")
    return by_name[name]
