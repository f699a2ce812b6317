"""Real inputs that need no network: files that installed packages already carry.

Packages are found through their metadata and never imported, because some of them pull in large
frameworks. Nothing here is redistributed by lrjax: each function states where its file comes from and
under which terms.
"""

import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np

_RECBOLE = "pip install --no-deps recbole==1.2.1"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ratings:
    """The observed entries of an incomplete table.

    Attributes:
        rows: `(m,)` int32, 0-based row of each entry.
        cols: `(m,)` int32, 0-based column of each entry.
        values: `(m,)` float64.
        shape: `(n1, n2)` of the table.
        row_ids: `(n1,)`, the original name of each row.
        col_ids: `(n2,)`, the original name of each column.
        name: what the table is called.
        source: where the file came from.
        licence: the terms its owner states.
        header: the names of the columns of rows, columns and values, where a file has a header.
        comments: lines of the file that were left out as comments.
    """

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]
    row_ids: np.ndarray
    col_ids: np.ndarray
    name: str
    source: str
    licence: str
    header: tuple[str, ...] | None = None
    comments: int = 0

    def __repr__(self) -> str:
        share = 100 * len(self.values) / max(1, self.shape[0] * self.shape[1])
        return (
            f"Ratings({self.name!r}, {self.shape[0]} x {self.shape[1]}, "
            f"{len(self.values)} entries, {share:.3g} % observed)"
        )


def movielens_100k() -> Ratings:
    """MovieLens-100K: 100,000 ratings from 1 to 5 by 943 people of 1682 films.

    The file is the one inside the wheel of `recbole` 1.2.1. Ids are the numbers of the original data
    set, from 1 upwards and without gaps, so a code is an id minus one.

    Licence: the data belong to GroupLens (University of Minnesota). Their terms allow research use, and
    neither redistribution nor commercial use without permission; the licence of the wheel covers its
    code only. Cite F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM
    TiiS 5(4), 2015.

    Returns:
        `Ratings` of shape `(943, 1682)`, in the order of the file.

    Raises:
        FileNotFoundError: if `recbole` is not installed; the text says what to run.
        ValueError: if the installed file is not the one described above.
    """
    path = _packaged_file("recbole", "recbole/dataset_example/ml-100k/ml-100k.inter")
    if path is None:
        raise FileNotFoundError(
            "MovieLens-100K is read from the installed package recbole, which was not found. Run "
            f"`{_RECBOLE}` (only its text file is used, so its dependencies are not needed). The data are "
            "GroupLens': for research use, not to be redistributed; the licence of the wheel covers its "
            "code only"
        )
    columns = ("user_id:token", "item_id:token", "rating:float")
    with path.open(encoding="utf-8") as file:
        header = tuple(file.readline().split())
        if header[:3] != columns:
            raise ValueError(f"{path}: the header is {header}, expected it to begin with {columns}")
        table = np.loadtxt(file, delimiter="\t", usecols=(0, 1, 2), ndmin=2)
    if table.shape[0] != 100_000:
        raise ValueError(f"{path}: {table.shape[0]} ratings, expected 100000; reinstall with `{_RECBOLE}`")
    row_ids, rows = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    col_ids, cols = np.unique(table[:, 1].astype(np.int64), return_inverse=True)
    return Ratings(
        rows=rows.astype(np.int32),
        cols=cols.astype(np.int32),
        values=table[:, 2].copy(),
        shape=(len(row_ids), len(col_ids)),
        row_ids=row_ids,
        col_ids=col_ids,
        name="MovieLens-100K",
        source=str(path),
        licence="GroupLens: research use only, no redistribution",
    )


def elevation() -> np.ndarray:
    """Heights around the Jacksboro fault, Tennessee: a real table that comes with matplotlib.

    The grid has 3 arc seconds per cell and spans 36.45 to 36.73 degrees north and 84.41 to 84.08
    degrees west; row 0 is the northern edge.

    Licence: a sample file of matplotlib, which states no separate terms for it.

    Returns:
        `(344, 403)` float64, metres above sea level, from 236 to 1076.

    Raises:
        FileNotFoundError: if matplotlib was installed without its sample data.

    Examples:
        >>> elevation().shape
        (344, 403)
    """
    with np.load(_matplotlib_sample("jacksboro_fault_dem.npz"), allow_pickle=False) as file:
        return file["elevation"].astype(np.float64)


def elevation_ratings(fraction: float = 0.2, seed: int = 0) -> Ratings:
    """`elevation()` with only some entries kept: an incomplete table that is always at hand.

    Args:
        fraction: the share of entries to keep, in (0, 1].
        seed: of NumPy's default generator; the same seed keeps the same entries.

    Returns:
        `Ratings` with `round(fraction * 344 * 403)` entries drawn uniformly without replacement, in row
        order. Ids are the row and column numbers, from 0.

    Raises:
        ValueError: if `fraction` is outside (0, 1] or so small that no entry would be kept.
        FileNotFoundError: if matplotlib was installed without its sample data.

    Examples:
        >>> elevation_ratings(0.25, seed=1)
        Ratings('Jacksboro elevation', 344 x 403, 34658 entries, 25 % observed)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    table = elevation()
    count = round(fraction * table.size)
    if count == 0:
        raise ValueError(f"fraction {fraction} keeps none of the {table.size} entries; raise it")
    kept = np.sort(np.random.default_rng(seed).choice(table.size, size=count, replace=False))
    rows, cols = np.divmod(kept, table.shape[1])
    return Ratings(
        rows=rows.astype(np.int32),
        cols=cols.astype(np.int32),
        values=table.ravel()[kept],
        shape=(table.shape[0], table.shape[1]),
        row_ids=np.arange(table.shape[0]),
        col_ids=np.arange(table.shape[1]),
        name="Jacksboro elevation",
        source="jacksboro_fault_dem.npz, sample data of matplotlib",
        licence="sample data of matplotlib, no separate terms stated",
    )


def photograph(size: int | None = None) -> tuple[np.ndarray, str]:
    """A real grey photograph: scikit-image's `camera.png`, or matplotlib's `grace_hopper.jpg`.

    The first is used where scikit-image is installed; the second comes with matplotlib and is turned
    grey with the usual luma weights (0.299, 0.587, 0.114).

    Licence: `camera.png` is CC0, by Lav Varshney. The portrait of Grace Hopper is a sample file of
    matplotlib, which states no separate terms for it.

    Args:
        size: if given, area-average the photograph until its longer side has at most `size` pixels. It
            is never enlarged.

    Returns:
        `(array, source)`, the first `(n1, n2)` float64 in [0, 1], and a line that says which photograph it is.

    Raises:
        ValueError: if `size` is not a positive integer.
        FileNotFoundError: if neither file is installed.

    Examples:
        >>> array, source = photograph(size=64)
        >>> max(array.shape)
        64
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
        raise ValueError(f"size must be a positive integer or None, got {size!r}")
    from PIL import Image

    path = _packaged_file("scikit-image", "skimage/data/camera.png")
    if path is not None:
        source = "camera.png of scikit-image, CC0 by Lav Varshney"
    else:
        path = _matplotlib_sample("grace_hopper.jpg")
        source = "grace_hopper.jpg, sample data of matplotlib"
    with Image.open(path) as file:
        array = np.asarray(file.convert("L"), dtype=np.float64) / 255
    if size is not None and size < max(array.shape):
        shrink = size / max(array.shape)
        by_row, by_col = (_area_average(n, max(1, round(shrink * n))) for n in array.shape)
        array = np.clip(by_row @ array @ by_col.T, 0, 1)  # rounding can step past 1
    return array, source


def digits() -> np.ndarray:
    """Handwritten digits: 1797 pictures of 8 x 8 pixels, one per row, without their labels.

    The file is the one inside scikit-learn: the test set of "Optical recognition of handwritten digits"
    (E. Alpaydin and C. Kaynak, UCI repository, 1998).

    Licence: scikit-learn ships it under BSD-3-Clause.

    Returns:
        `(1797, 64)` float64, whole numbers from 0 to 16.

    Raises:
        FileNotFoundError: if scikit-learn is not installed.
    """
    path = _packaged_file("scikit-learn", "sklearn/datasets/data/digits.csv.gz")
    if path is None:
        raise FileNotFoundError(
            "the digits are read from the installed package scikit-learn, which was not found. "
            "Run `pip install scikit-learn`"
        )
    return np.loadtxt(path, delimiter=",")[:, :-1]  # the last column is the label


def _packaged_file(distribution: str, name: str) -> Path | None:
    """The path of a file that an installed distribution lists, or None; the package is not imported."""
    try:
        listed = importlib.metadata.files(distribution) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in listed:
        if entry.as_posix() == name:
            path = Path(str(entry.locate()))
            return path if path.is_file() else None
    return None


def _matplotlib_sample(name: str) -> Path:
    # matplotlib's own lookup, because some systems install the sample data apart from the package.
    from matplotlib.cbook import get_sample_data

    path = Path(str(get_sample_data(name, asfileobj=False)))
    if not path.is_file():
        raise FileNotFoundError(
            f"matplotlib was installed without its sample file {name}; `pip install matplotlib` brings it"
        )
    return path


def _area_average(n: int, k: int) -> np.ndarray:
    """`(k, n)` weights that average n cells into k equal ones; a cell cut by an edge is shared."""
    edges = np.linspace(0, n, k + 1)
    cells = np.arange(n)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.maximum(overlap, 0) * (k / n)
