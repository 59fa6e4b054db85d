"""One honest way to compare running times: in one process, in turns, by medians, with the spread beside them."""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Ratio:
    """One contender against the reference.

    Args:
        seconds: median time of one call.
        ratio: of the medians.
        low, high: quartiles of the ratio within each round, where both met the same load of the machine.
        rounds: how often both were timed.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{1000 * self.seconds:8.1f} ms  {self.ratio:6.2f}×  [{self.low:.2f}, {self.high:.2f}]  n={self.rounds}"


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 15, warm: int = 2, processor: bool = False
) -> dict[str, Ratio]:
    """Time every contender once per round, the first one being the reference.

    `ratio = median(contender) / median(reference)`

    The order turns round by round, so that no contender always runs after the same one (caches, heat).

    Args:
        contenders: by name; the first is the reference.
        rounds: timed calls of each.
        warm: calls of each before the clock starts.
        processor: count this process's processor time instead of the wall clock: with one thread both are the same on
            an idle machine, and on a busy one only this does not count the others' work.
    """
    names = list(contenders)
    clock = time.process_time if processor else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            start = clock()
            contenders[name]()
            if number >= 0:
                times[name].append(clock() - start)
    reference = times[names[0]]
    result = {}
    for name, own in times.items():
        each = sorted(a / b for a, b in zip(own, reference, strict=True))
        low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
        middle = statistics.median(own)
        result[name] = Ratio(middle, middle / statistics.median(reference), low, high, rounds)
    return result


def fresh(code: str, *arguments: str) -> dict[str, float]:
    """Run code in a new interpreter and return the JSON of its last printed line."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measured process failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(*packages: str) -> str:
    """One line: processor, threads, system, and the versions that matter."""
    import torch

    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    versions = ", ".join(f"{package} {version(package)}" for package in ("heatproof", "torch", *packages))
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}; {versions}"
