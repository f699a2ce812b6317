import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest

from lrjax import datasets


def needs(distribution: str):
    try:
        importlib.metadata.distribution(distribution)
        missing = False
    except importlib.metadata.PackageNotFoundError:
        missing = True
    return pytest.mark.skipif(missing, reason=f"{distribution} is not installed")


@pytest.fixture
def nothing_installed(monkeypatch):
    def files(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)


@needs("recbole")
def test_movielens_is_the_standard_data_set():
    ratings = datasets.movielens_100k()
    assert ratings.shape == (943, 1682)
    assert ratings.rows.dtype == ratings.cols.dtype == np.int32
    assert ratings.values.dtype == np.float64
    levels, counts = np.unique(ratings.values, return_counts=True)
    assert levels.tolist() == [1, 2, 3, 4, 5]
    assert counts.tolist() == [6110, 11370, 27145, 34174, 21201]
    pairs = ratings.rows.astype(np.int64) * ratings.shape[1] + ratings.cols
    assert len(np.unique(pairs)) == 100_000
    # The first line of the file: user 196 gave film 242 a 3.
    assert (ratings.row_ids[ratings.rows[0]], ratings.col_ids[ratings.cols[0]]) == (196, 242)
    assert ratings.values[0] == 3
    assert np.array_equal(ratings.row_ids, np.arange(1, 944))
    assert np.array_equal(ratings.col_ids, np.arange(1, 1683))
    assert "GroupLens" in ratings.licence


@needs("recbole")
def test_movielens_does_not_import_its_carrier():
    code = "import sys; from lrjax import datasets\ndatasets.movielens_100k(); assert 'recbole' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_movielens_says_what_to_do(nothing_installed):
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps recbole==1\.2\.1") as caught:
        datasets.movielens_100k()
    assert "GroupLens" in str(caught.value)
    assert "redistributed" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user\titem\tstars\n1\t1\t5\n", "header"),
        ("user_id:token\titem_id:token\trating:float\n1\t1\t5\n", "1 ratings, expected 100000"),
    ],
)
def test_another_movielens_file_is_refused(monkeypatch, tmp_path, text, expected):
    path = tmp_path / "ml-100k.inter"
    path.write_text(text)
    monkeypatch.setattr(datasets, "_packaged_file", lambda *_: path)
    with pytest.raises(ValueError, match=expected):
        datasets.movielens_100k()


def test_a_listed_file_that_is_gone_counts_as_missing(monkeypatch):
    gone = importlib.metadata.PackagePath("nowhere/at/all.txt")
    gone.dist = importlib.metadata.distribution("numpy")
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [gone])
    assert datasets._packaged_file("anything", "nowhere/at/all.txt") is None


def test_elevation():
    table = datasets.elevation()
    assert table.shape == (344, 403)
    assert table.dtype == np.float64
    assert (table.min(), table.max()) == (236, 1076)


def test_elevation_ratings_are_entries_of_the_table():
    table = datasets.elevation()
    ratings = datasets.elevation_ratings(0.2, seed=3)
    assert ratings.shape == table.shape
    assert len(ratings.values) == round(0.2 * table.size)
    assert np.array_equal(ratings.values, table[ratings.rows, ratings.cols])
    assert len(np.unique(ratings.rows.astype(np.int64) * table.shape[1] + ratings.cols)) == len(ratings.rows)
    again, other = datasets.elevation_ratings(0.2, seed=3), datasets.elevation_ratings(0.2, seed=4)
    assert np.array_equal(again.cols, ratings.cols)
    assert not np.array_equal(other.cols, ratings.cols)
    # Uniform: each quarter of the table holds about a quarter of the entries (six deviations).
    top_left = np.mean((ratings.rows < 172) & (ratings.cols < 201))
    expected = 172 * 201 / table.size
    assert abs(top_left - expected) < 6 * np.sqrt(expected * (1 - expected) / len(ratings.rows))
    assert "20 % observed" in repr(ratings)


def test_elevation_ratings_may_keep_everything():
    ratings = datasets.elevation_ratings(1.0)
    assert np.array_equal(ratings.values.reshape(ratings.shape), datasets.elevation())


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), 1e-9])
def test_elevation_ratings_check_the_fraction(fraction):
    with pytest.raises(ValueError, match="fraction"):
        datasets.elevation_ratings(fraction)


@needs("scikit-image")
def test_photograph_of_scikit_image():
    array, source = datasets.photograph()
    assert array.shape == (512, 512)
    assert "camera.png" in source
    assert "skimage" not in sys.modules


def test_photograph_without_scikit_image(nothing_installed):
    array, source = datasets.photograph()
    assert array.shape == (600, 512)
    assert array.dtype == np.float64
    assert 0 <= array.min() < 0.1 < 0.9 < array.max() <= 1
    assert "grace_hopper.jpg" in source


def test_photograph_shrinks_by_averaging(nothing_installed):
    full, _ = datasets.photograph()
    half, _ = datasets.photograph(size=300)
    blocks = full.reshape(300, 2, 256, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(half, blocks, atol=1e-12)
    uneven, _ = datasets.photograph(size=77)
    assert uneven.shape == (77, 66)
    np.testing.assert_allclose(uneven.mean(), full.mean(), atol=1e-12)
    assert datasets.photograph(size=1)[0].shape == (1, 1)
    assert datasets.photograph(size=10_000)[0].shape == full.shape


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "64"])
def test_photograph_checks_the_size(size):
    with pytest.raises(ValueError, match="size must be a positive integer"):
        datasets.photograph(size)


def test_matplotlib_without_samples(monkeypatch, tmp_path):
    import matplotlib.cbook

    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", lambda name, asfileobj: str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="without its sample file"):
        datasets.elevation()


@needs("scikit-learn")
def test_digits():
    images = datasets.digits()
    assert images.shape == (1797, 64)
    assert images.dtype == np.float64
    assert (images.min(), images.max()) == (0, 16)
    # Top left of the first picture, a zero, as the UCI documentation prints it.
    assert images[0, :8].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_missing_digits(nothing_installed):
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        datasets.digits()


def test_import_is_light():
    code = (
        "import sys; from lrjax import datasets\n"
        "heavy = {'matplotlib', 'PIL', 'sklearn', 'skimage'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
