"""Which rule each operation of a model gets, before anything is explained."""

from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor, nn

from heatproof.lrp.composites import Composite, composite
from heatproof.lrp.ledger import LayerRow, Row
from heatproof.lrp.propagation import Propagation
from heatproof.models import Model
from heatproof.models.loading import as_model
from heatproof.models.shadow import shadow
from heatproof.models.tape import placement, recording, run


def coverage(model: Model | nn.Module, images: Any = None, rules: str | Composite = "auto") -> list[dict[str, Any]]:
    """List each operation of a model and the rule that it gets: one forward, no backward.

    Args:
        model: a `Model`, or a plain module.
        images: anything that `explain()` takes; None is an image of noise in the size that the preprocessing gives.
        rules: a composite or its name, as in `lrp`.

    Returns:
        Rows with `place`, `op`, `rule` and `count`, in order of execution. An operation without a rule has the rule
        `"none"`; relevance cannot pass it, and `lrp` will say so.

    Raises:
        ModelError: the model cannot take such an image. MethodError: no such composite.
    """
    model = as_model(model)
    x = _noise(model) if images is None else model.tensor(images)[:1]
    twin = shadow(model.module)
    prop = Propagation(twin, composite(rules, None, None, False), tolerant=True)
    with recording(True):
        root = prop.begin(x.clone().to(*placement(twin)))
        with prop:
            run(model.readout, twin, root)
    if rules == "auto":
        prop.composite = composite("auto", None, None, prop.has_attention)
    counted = Counter((row.place, row.op, _rule(prop, row)) for row in prop.rows)
    return [{"place": place, "op": op, "rule": rule, "count": count} for (place, op, rule), count in counted.items()]


def _rule(prop: Propagation, row: Row) -> str:
    return repr(prop.rule(row)) if isinstance(row, LayerRow) else row.rule


def _noise(model: Model) -> Tensor:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return model.preprocess(Image.fromarray(noise))[None]
