"""A small classifier, its picture, and files that are no images."""

import struct
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import heatproof as hp
from heatproof import images

CLASSES = ("cat", "dog", "tabby", "teapot", "zebra")
WIDTH, HEIGHT = 23, 17


def small(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    layers = OrderedDict(
        conv=nn.Conv2d(3, 6, 3, padding=1),
        act=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(6, classes),
    )
    return nn.Sequential(layers).eval()


def to_unit(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def model() -> hp.Model:
    return hp.wrap(small(), preprocess=to_unit, labels=CLASSES)


def picture(seed: int = 0) -> Image.Image:
    """A smooth colour picture with no symmetry, so that a wrong rotation shows."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green = 255 * rows / (HEIGHT - 1), 255 * columns / (WIDTH - 1)
    blue = 127 * (1 + np.sin(seed + rows / 3))
    return Image.fromarray(np.stack([red, green, blue], -1).round().astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def write(path: Path, kind: str) -> Path:
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no photograph")
    elif kind == "half a JPEG":
        picture().resize((200, 150)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "half a PNG":
        picture().resize((200, 150)).save(path, "PNG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "only a header":
        picture().save(path, "PNG")
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "flipped bits":
        picture().save(path, "PNG")
        data = bytearray(path.read_bytes())
        data[60:80] = bytes(255 - b for b in data[60:80])
        path.write_bytes(bytes(data))
    elif kind == "bomb":
        path.write_bytes(png_that_claims(60_000, 60_000))
    elif kind == "small bomb":  # above our limit, below the one where Pillow itself gives up
        path.write_bytes(png_that_claims(10_000, 10_000))
    elif kind == "folder":
        path.mkdir()
    else:
        assert kind == "missing"
    return path


BAD_FILES = {
    "zero bytes": ["0 bytes", "again"],
    "text": ["not an image", "expected JPEG"],
    "half a JPEG": ["truncated"],
    "half a PNG": ["truncated"],
    "only a header": ["not an image"],
    "flipped bits": ["damaged"],
    "bomb": [f"{images.MAX_PIXELS:,} pixels", "smaller"],
    "small bomb": [f"{images.MAX_PIXELS:,} pixels", "smaller"],
    "folder": ["folder", "list"],
    "missing": ["no file", "check the path"],
}
