"""Loops that no array operation can do, compiled once by numba and kept on disk."""

import inspect
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba import njit

_log = logging.getLogger("heatproof")


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a loop when it is first called; from then on it comes from the cache on disk, also in other processes.

    Other threads run while it does (`nogil`). Where there is no folder to write a cache to, it is compiled once per process.
    """
    function = inspect.unwrap(function)  # tests wrap everything with type checks, which no compiler can read
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation in a home that cannot be written to either
        return njit(nogil=True)(function)


@cache
def announce(kernel: Any, what: str) -> None:
    """Say once, on the log "heatproof", that the next call takes seconds because it compiles; silent if it is cached."""
    folder = getattr(kernel.stats, "cache_path", None)
    name = f"{Path(kernel.py_func.__code__.co_filename).stem}.{kernel.py_func.__qualname__}-*.nbi"
    if folder is None or not any(Path(folder).glob(name)):
        where = "not kept: no folder for it can be written to" if folder is None else f"kept in {folder}"
        _log.warning("compiling %s, once per installation, which takes some seconds (%s).", what, where)


def each(kernel: Any, what: str, calls: Sequence[tuple[Any, ...]]) -> None:
    """Call a compiled loop once per image, on as many threads as torch may use.

    Args:
        kernel: of `compiled`, writing into one of its arguments.
        what: it is, should it have to be compiled now.
        calls: the arguments of each call.
    """
    announce(kernel, what)
    workers = min(len(calls), torch.get_num_threads())
    if workers <= 1:
        for arguments in calls:
            kernel(*arguments)
        return
    with ThreadPoolExecutor(workers) as pool:  # the first to come compiles, numba lets the others wait for it
        list(pool.map(lambda arguments: kernel(*arguments), calls))
