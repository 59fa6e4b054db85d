"""Does a map stay the same when the image hardly changes?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof import seeds
from heatproof.errors import InputError
from heatproof.proof.curves import check_counts
from heatproof.proof.interventions import Result
from heatproof.proof.subject import Subject

Explain = Callable[[Tensor, Tensor], Tensor]
"""From images `(n, 3, H, W)` and the rows `(n,)` whose targets are meant to maps `(n, T, h, w)`: the method itself."""


@dataclass(frozen=True)
class MaxSensitivity:
    """The largest relative change of the map among images that differ by next to nothing.

    `max_k ‖map(x + δ_k) − map(x)‖₂ / ‖map(x)‖₂`, `δ_k` uniform in `[−radius, radius]` per pixel and channel

    Args:
        radius: of the noise in the model's own input units, above 0.
        samples: number of noisy copies.
        seed: of the noise, the same for every image.

    Returns:
        `values` `(B, T, 1)` ≥ 0, lower is better; infinite where the map is all zeros and does not stay so.

    Misleads on its own: a map that ignores the image gets 0, the best value there is. A sampled maximum grows with the
    samples, so values compare only at the same radius and number.

    Paper: Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations"; relative as in Captum.
    """

    name: ClassVar[str] = "max-sensitivity"
    paper: ClassVar[str] = "Yeh et al. 2019"
    higher_is_better: ClassVar[bool] = False
    radius: float = 0.02
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(samples=self.samples)
        if not self.radius > 0:
            raise InputError(f"radius={self.radius!r}; expected a number above 0, in the model's own input units.")

    def cost(self, subject: Subject, maps: int = 1) -> int:
        """Images that are explained, not run: what one costs is the method's affair."""
        return len(subject.x) * (self.samples + 1)

    def __call__(self, subject: Subject, explain: Explain) -> Result:
        x = subject.x
        clean = self._explained(explain, x, torch.arange(len(x), device=x.device))
        size = clean.flatten(2).norm(dim=2)
        generator, worst = seeds.generator(self.seed), torch.zeros_like(size)
        for _ in range(self.samples):
            noise = (torch.rand(x.shape[1:], generator=generator) * 2 - 1).to(x) * self.radius
            near = self._explained(explain, x + noise, torch.arange(len(x), device=x.device))
            worst = torch.maximum(worst, (near - clean).flatten(2).norm(dim=2))
        return Result(torch.where(worst == 0, 0.0, worst / size)[:, :, None], False)

    @staticmethod
    def _explained(explain: Explain, x: Tensor, rows: Tensor) -> Float[Tensor, "batch targets h w"]:
        maps = explain(x, rows)
        if not isinstance(maps, Tensor) or maps.ndim != 4 or len(maps) != len(x):
            came = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise InputError(f"explain returned {came} for {len(x)} image(s); expected a tensor of maps (n, T, H, W).")
        return maps.detach().float()
