"""Files that are written whole or not at all, and the safetensors files that values are kept in."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from heatproof.errors import InputError

_SCHEMA = 1


@contextmanager
def written_whole(path: str | os.PathLike, what: str, hint: str = "choose another place") -> Iterator[Path]:
    """A temporary file beside `path` that takes its place only if the block succeeds.

    Args:
        path: of the file.
        what: is written, for the error's sentence.
        hint: how to do better, for the same.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)  # still there if something failed, here or in the block
    except (OSError, SafetensorError) as error:
        raise InputError(f"{what} cannot be written to {str(path)!r} ({error}); {hint}.") from error


def save_tensors(path: str | os.PathLike, what: str, tensors: Mapping[str, Tensor | None], header: Mapping[str, Any]) -> Path:
    """Write one safetensors file with a JSON header: whole or not at all, and no pickle.

    Args:
        path: of the file.
        what: it holds, as in `"an explanation"`; the only thing that `load_tensors` will read it as.
        tensors: by name; None is left out.
        header: what else there is, everything that JSON can say.

    Returns:
        The path.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    with written_whole(path, what) as temporary:
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in tensors.items() if tensor is not None},
            temporary,
            {"heatproof": json.dumps({"schema": _SCHEMA, "what": what, **header}, default=str)},
        )
    return Path(path)


def load_tensors(path: str | os.PathLike, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Returns:
        The tensors and the header.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("heatproof", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as {what} ({error}).") from error
    if not isinstance(header, dict) or (header.pop("schema", None), header.pop("what", None)) != (_SCHEMA, what):
        raise InputError(f"{str(path)!r} is not {what} that this version of heatproof reads; save it again.")
    return tensors, header


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
