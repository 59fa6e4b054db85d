"""Peak memory of a call in a fresh process, and growth over many calls."""

from benchmarks.timing import fresh

_PEAK = """
import json, sys, torch, torchvision, heatproof as hp
from heatproof.explain import explain
torch.manual_seed(0)
what, batch = sys.argv[1], int(sys.argv[2])
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
net = torchvision.models.resnet50().eval()
small = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    net(small)              # the libraries' own buffers are not the call's
explain(net, small)
x = torch.randn(batch, 3, 224, 224)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")   # the peak starts here
if what == "forward":
    with torch.no_grad():
        net(x)
elif what == "gradcam":
    explain(hp.wrap(net), x, method="gradcam")
else:
    explain(hp.wrap(net), x, method="gradient")
print(json.dumps({"before": before, "peak": status("VmHWM")}))
"""

_GROWTH = """
import json, sys, torch, torchvision, heatproof as hp
torch.manual_seed(0)
net = hp.wrap(torchvision.models.resnet18().eval())
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024
marks = {}
for count in range(1, 1 + int(sys.argv[1])):
    hp.explain(net, torch.randn(3, 64, 64), method=["gradcam", "gradient"])
    if count in (100, int(sys.argv[1])):
        marks[str(count)] = resident()
print(json.dumps(marks))
"""


def peaks(batch: int) -> dict[str, dict[str, float]]:
    """MB resident before the call, at its peak, and the difference, for a forward, Grad-CAM and an input gradient.

    Linux only: the kernel's own high-water mark is reset before the call. Every call is the process's first of its
    size, so Grad-CAM's number includes the look at the network that finds its layer.
    """
    found = {}
    for what in ("forward", "gradcam", "gradient"):
        one = fresh(_PEAK, what, str(batch))
        found[what] = {**one, "own": one["peak"] - one["before"]}
    return found


def growth(images: int = 1000) -> dict[str, float]:
    """MB resident after 100 images and after all of them, one call each."""
    return fresh(_GROWTH, str(images))
