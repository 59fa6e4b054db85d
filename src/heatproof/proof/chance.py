"""How surprising a number is among the numbers of maps that know nothing."""

import torch
from jaxtyping import Float
from scipy.stats import beta
from torch import Tensor

LEVEL = 0.05
"""A map is supported at p at or below this."""


def p_value(value: Float[Tensor, "*maps"], null: Float[Tensor, "*maps copies"], higher: bool = True) -> Float[Tensor, "*maps"]:
    """Exact permutation rank of a number among those of its null copies.

    `p = (1 + #{null ≥ value}) / (K + 1)`

    Ties count against the map. If value and null are exchangeable, `P(p ≤ α) ≤ α` for every α, with equality at the
    multiples of `1 / (K + 1)` where there are no ties.

    Args:
        value: of the maps.
        null: of their K copies; NaN for a copy that was not run, which then does not count.
        higher: whether a larger number speaks for the map.

    Returns:
        float64 in `[1 / (K + 1), 1]`; NaN where the value is NaN, 1 where no copy was run.
    """
    beaten = null >= value[..., None] if higher else null <= value[..., None]
    run = torch.isfinite(null)
    p = (1 + (beaten & run).sum(-1)).double() / (1 + run.sum(-1)).double()
    return torch.where(torch.isnan(value), torch.nan, p)


def interval(
    value: Float[Tensor, "*maps"], null: Float[Tensor, "*maps copies"], higher: bool = True, level: float = 0.95
) -> Float[Tensor, "*maps 2"]:
    """Where p would lie if all possible copies were run instead of K of them (Clopper–Pearson).

    Args:
        value, null, higher: as in `p_value`.
        level: of the interval.

    Returns:
        float64, the lower and the upper end. It is narrow where K is large: that is what a larger budget buys.

    Paper: Clopper, Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    run = torch.isfinite(null)
    beaten = ((null >= value[..., None] if higher else null <= value[..., None]) & run).sum(-1).double().cpu().numpy()
    count, tail = run.sum(-1).double().cpu().numpy(), (1 - level) / 2
    low = torch.as_tensor(beta.ppf(tail, beaten, count - beaten + 1)).nan_to_num(0.0)  # no tail below none of K
    high = torch.as_tensor(beta.ppf(1 - tail, beaten + 1, count - beaten)).nan_to_num(1.0)
    ends = torch.stack([low, high], -1)
    return torch.where(torch.isnan(value.cpu())[..., None], torch.nan, ends)
