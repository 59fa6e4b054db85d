"""What it costs to begin: the import beside torch's own, and help without torch."""

import statistics

from benchmarks.timing import fresh

_IMPORT = """
import json, time
a = time.perf_counter()
import torch
b = time.perf_counter()
import heatproof as hp
c = time.perf_counter()
for name in hp.__all__:
    getattr(hp, name)
d = time.perf_counter()
print(json.dumps({"torch": b - a, "import heatproof": c - b, "and every name in it": d - c}))
"""

_HELP = """
import io, json, sys, time
from contextlib import redirect_stdout
a = time.perf_counter()
sys.argv = ["heatproof", "--help"]
with redirect_stdout(io.StringIO()):
    try:
        from heatproof.cli import main
        main()
    except SystemExit:
        pass
print(json.dumps({"seconds": time.perf_counter() - a, "torch imported": float("torch" in sys.modules)}))
"""


def imports(rounds: int = 7) -> dict[str, float]:
    """Median seconds of `import torch`, of `import heatproof` after it, and of touching every public name."""
    runs = [fresh(_IMPORT) for _ in range(rounds)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def help_page(rounds: int = 5) -> dict[str, float]:
    """Median seconds of `heatproof --help` within Python, and whether torch was imported on the way."""
    runs = [fresh(_HELP) for _ in range(rounds)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
