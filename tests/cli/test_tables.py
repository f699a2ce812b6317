import contextlib
import errno
import gzip
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from lrjax.cli.delimited import Format, read_pairs
from lrjax.cli.results import check_directory, write_result
from lrjax.cli.tables import read_entries


def written(tmp_path, text, name="entries.csv"):
    path = tmp_path / name
    data = text if isinstance(text, bytes) else text.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


def named(ratings):
    """The entries by their names, in order."""
    rows, cols = ratings.row_ids[ratings.rows].tolist(), ratings.col_ids[ratings.cols].tolist()
    return list(zip(rows, cols, ratings.values.tolist(), strict=True))


ENTRIES = [("ann", "Alien", 5.0), ("bob", "Brazil", 2.5), ("ann", "Brazil", -1.0)]


@pytest.mark.parametrize("mark", [",", "\t", ";", ", "])
@pytest.mark.parametrize("header", ["", "who{0}film{0}stars\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimited_text(tmp_path, mark, header, end):
    lines = "".join(f"{row}{mark}{col}{mark}{value}\n" for row, col, value in ENTRIES)
    text = (header.format(mark) + lines).replace("\n", end)
    ratings = read_entries(written(tmp_path, text))
    assert named(ratings) == ENTRIES
    assert ratings.shape == (2, 2)
    assert ratings.row_ids.tolist() == ["ann", "bob"]  # in order of first appearance
    assert ratings.rows.tolist() == [0, 1, 0]
    assert ratings.rows.dtype == ratings.cols.dtype == np.int32
    assert ratings.values.dtype == np.float64
    assert ratings.name == "entries.csv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,x,1,1999-01-01,more\nb,y,2,2000-01-01,fields\n", [("a", "x", 1.0), ("b", "y", 2.0)]),
        (
            '"Doe, Jane","8 ""½""",1\n"two\nlines",y,2\n',
            [("Doe, Jane", '8 "½"', 1.0), ("two\nlines", "y", 2.0)],
        ),
        ("a;x,y;1\n", [("a", "x,y", 1.0)]),
        ("\n\na,x,1\n\nb,x,1e-3\n\n", [("a", "x", 1.0), ("b", "x", 0.001)]),
        ("\ufeffa,x,1\n", [("a", "x", 1.0)]),
        ("a,x,1", [("a", "x", 1.0)]),
        ("1,2,3\n1,2,3\n", [("1", "2", 3.0), ("1", "2", 3.0)]),
    ],
    ids=["extra", "quoted", "semicolon", "blank", "mark", "open end", "twice"],
)
def test_forms_of_text(tmp_path, text, expected):
    assert named(read_entries(written(tmp_path, text))) == expected


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("u::i::4.5::978300760\nv::j::2::978300761\n", {}),  # MovieLens 1M
        ("u i 4.5\nv   j\t 2\n", {}),
        ("u|i|4.5\nv|j|2\n", {}),
        ("u,i,4.5,978300760\nv,j,2,978300761\n", {}),
        ("# from: somewhere\n# two of them\n\nu,i,4.5\nv,j,2\n", {}),
        ("# user,item,rating\nu,i,4.5\nv,j,2\n", {}),
        ("userId,movieId,rating,timestamp\nu,i,4.5,1\nv,j,2,2\n", {}),
        (",user,item,rating\n0,u,i,4.5\n1,v,j,2\n", {}),  # with the index in front
        ("movie_id,user_id,title,rating\ni,u,A,4.5\nj,v,B,2\n", {}),
        ("user_id:token\titem_id:token\trating:float\nu\ti\t4.5\nv\tj\t2\n", {}),
        ('"User-ID";"ISBN";"Book-Rating"\n"u";"i";"4.5"\n"v";"j";"2"\n', {}),
        ("id,benutzer,film,note\n0,u,i,4.5\n1,v,j,2\n", {"columns": ("benutzer", "film", "note")}),
        ("id,benutzer,film,note\n0,u,i,4.5\n1,v,j,2\n", {"columns": ("2", "3", "4")}),
        ("0,u,i,4.5\n1,v,j,2\n", {"columns": ("2", "3", "4")}),
        ("benutzer,film,note\nu,i,4.5\nv,j,2\n", {}),
        ("u;i;4,5\nv;j;2\n", {"decimal": ","}),
        ('u,i,"4,5"\nv,j,2\n', {"decimal": ","}),
        ("u~i~4.5\nv~j~2\n", {"separator": "~"}),
        ("u,i,4.5\nv,j,2\n".encode("utf-16"), {}),
        ("u,i,4.5\nv,j,2\n".encode("utf-16-le"), {"encoding": "utf-16-le"}),
    ],
)
def test_published_forms(tmp_path, text, form):
    ratings = read_entries(written(tmp_path, text), Format(**form))
    assert named(ratings) == [("u", "i", 4.5), ("v", "j", 2.0)]


def test_what_was_taken_for_a_header_is_told(tmp_path):
    ratings = read_entries(written(tmp_path, "# made up\nid,movie,user,stars\n0,i,u,4\n"))
    assert (ratings.header, ratings.comments) == (("user", "movie", "stars"), 1)
    assert read_entries(written(tmp_path, "#1,i,4\n#2,j,5\n")).row_ids.tolist() == ["#1", "#2"]  # no comments


def test_other_encodings_by_name(tmp_path):
    path = written(tmp_path, "Zoë,Amélie,5\n".encode("latin-1"))
    assert named(read_entries(path, Format(encoding="latin-1"))) == [("Zoë", "Amélie", 5.0)]
    with pytest.raises(ValueError, match="unknown encoding: latin-one"):
        read_entries(path, Format(encoding="latin-one"))
    with pytest.raises(IsADirectoryError):
        read_entries(tmp_path)


PAIRS_TABLE = 'user;item;rating\nann;x;1\n"Doe, Jo";y, z;2\n'


@pytest.mark.parametrize(
    "text",
    [
        "ann;x\nDoe, Jo;y, z\n",
        "\ufeffann;x\nDoe, Jo;y, z\n",
        "ann\tx\nDoe, Jo\ty, z\n",
        'user,item\nann,x\n"Doe, Jo","y, z"\n',
        'item,user\nx,ann\n"y, z","Doe, Jo"\n',
        'row,column,prediction\nann,x,0.5\n"Doe, Jo","y, z",1\n',
        "# asked\nann;x\n\nDoe, Jo;y, z\n",
        "ann;x\nDoe, Jo;y, z\n".encode("utf-16"),
    ],
)
def test_pairs_are_read_as_the_table_is(tmp_path, text):
    table = read_entries(written(tmp_path, PAIRS_TABLE))
    rows, cols = read_pairs(written(tmp_path, text, "ask.csv"), table, Format())
    assert (rows.tolist(), cols.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amn;x\nann;x\n", "line 1: 'amn;x': 'amn' is not a row of the table"),  # no header
        ("ann;x\nann;u\u2028v\n", "line 2: .* is not a column of the table; it has 'x', 'y, z'"),
        ("ann\n", r"line 1: 'ann' has 1 field\(s\)"),
        ("", "empty"),
        ("user;item\n", "a header but no pair"),
        ("ann;x\n# more\n", "line 2"),
    ],
)
def test_bad_pairs_are_named(tmp_path, text, expected):
    table = read_entries(written(tmp_path, PAIRS_TABLE))
    with pytest.raises(ValueError, match=expected) as caught:
        read_pairs(written(tmp_path, text, "ask.csv"), table, Format())
    assert "ask.csv" in str(caught.value)


def test_names_that_look_like_numbers_stay_text(tmp_path):
    ratings = read_entries(written(tmp_path, "007,1.0,3\n7,1,4\n"))
    assert ratings.row_ids.tolist() == ["007", "7"]
    assert ratings.col_ids.tolist() == ["1.0", "1"]


def test_gzipped_text(tmp_path):
    assert named(read_entries(written(tmp_path, "a,x,1\nb,y,2\n", "entries.csv.gz"))) == [
        ("a", "x", 1.0),
        ("b", "y", 2.0),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("row,col,value\n", "a header but no entry"),
        ("a,x,1\nb,y,two\n", "line 2: the value is 'two'; expected a number"),
        ("row,col,value\na,x,1\nb,y\n", "line 3: 'b,y' has 2 field"),
        ("a b\n", r"line 1: 'a b' has 1 field\(s\); expected row, column, value"),
        ("a,x,nan\n", "line 1: the value is 'nan'; expected a finite number"),
        ("row,col,value\na,x,1\n\nb,y,inf\n", "line 4: the value is 'inf'"),
        ("a,x,\n", "line 1: the value is ''"),
        ("a;x;3,5\nb;y;2,5\n", "line 1: the value is '3,5'; expected a number, with a point.*--decimal ,"),
        ("a,x,1\n,y,2\n", "line 2: .* empty name"),
        ('a,x,1\n"b,y,2\n', "line 2: unexpected end of data"),
        (b"a,x,1\n\xff,y,2\n", "not UTF-8.*--encoding latin-1"),
        # A first line that is wrong is no header.
        *(
            (f"a,x,{bad}\nb,y,2\n", rf"line 1: the value is '{re.escape(bad)}'")
            for bad in ("4..5", "50%", "$5", "1999-01-01", "N/A", "1_0", "", "-", "NULL")
        ),
        ("a;x;1.234,5\nb;y;2\n", "line 1: the value is '1.234,5'"),
        ("a,x,stars\na,y,2\n", "a, x, stars, was taken for a header, but 'a' occurs again"),
        # A decimal comma makes a field too many.
        ("u,i,1,5\nu,j,2,25\n", "'u,i,1,5' may hold a decimal comma.*--columns 1,2,3"),
        ("u,i,1.234,5\nu,j,2,25\n", "may hold a decimal comma"),
        ("user,item,rating\nu,i,1,5\n", "line 2: 'u,i,1,5' has 4 fields, the first line 3"),
        ("u,i,4\nu,j,1,5\n", "line 2: 'u,j,1,5' has 4 fields"),
        ("u i 4\nthe user j 1\n", "line 2: 'the user j 1' has 4 fields"),
        # Which columns?
        ("id,benutzer,film,note\n0,u,i,5\n", "line 1: the header has id, benutzer, film, note: which .*--columns"),
        ("film,benutzer,note\nu,i,5\n", "which are row, column and value"),
        ("0,ann,alien,5\n1,bob,alien,4\n", "which are row, column and value"),
        ("a,x,1\n" + "n" * 2000 + ",x,2\n", "a name of 2000 characters"),
        ("a,x,1\n" + "n" * 200_000 + ",x,2\n", "line 2: field larger than"),
        ("n" * 200_000 + ",x,2\n", "line 1: "),
        ("u\0,i,1\n", "NUL"),
    ],
)
def test_bad_text_is_named(tmp_path, text, expected):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=expected) as caught:
        read_entries(path)
    assert str(path) in str(caught.value)


def test_no_such_file(tmp_path):
    for name in ("a.csv", "a.npz", "a.mtx", "a.csv.gz"):
        with pytest.raises(FileNotFoundError):
            read_entries(tmp_path / name)


@pytest.mark.parametrize("cut", [slice(None, -12), slice(4, None)])
def test_damaged_gzip(tmp_path, cut):
    path = written(tmp_path, "a,x,1\n" * 100, "a.csv.gz")
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(ValueError, match="gzip"):
        read_entries(path)


def test_a_million_lines_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 50_000, 1_000_000), rng.integers(0, 20_000, 1_000_000)
    text = "\n".join(f"user{r},item{c},{r % 5 + 1}.5" for r, c in zip(rows.tolist(), cols.tolist(), strict=True))
    path = written(tmp_path, text)
    start = time.perf_counter()
    ratings = read_entries(path)
    assert time.perf_counter() - start < 20  # 1.5 s on an idle machine
    assert ratings.shape == (len(np.unique(rows)), len(np.unique(cols)))
    assert ratings.row_ids[ratings.rows[123_456]] == f"user{rows[123_456]}"
    assert np.array_equal(ratings.values, rows % 5 + 1.5)


def sparse(seed=0, n1=7, n2=5):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((n1, n2)) < 0.4, rng.normal(size=(n1, n2)), 0)
    return scipy.sparse.coo_array(dense)


def dense(ratings):
    table = np.zeros(ratings.shape)
    np.add.at(table, (ratings.rows, ratings.cols), ratings.values)
    return table


@pytest.mark.parametrize("form", ["coo", "csr", "csc"])
def test_saved_sparse_matrix(tmp_path, form):
    matrix = sparse()
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix.asformat(form))
    ratings = read_entries(tmp_path / "a.npz")
    assert np.array_equal(dense(ratings), matrix.toarray())
    assert ratings.row_ids.tolist() == list(range(7))


def test_other_sparse_formats_are_refused(tmp_path):
    scipy.sparse.save_npz(tmp_path / "a.npz", sparse().asformat("dia"))
    with pytest.raises(ValueError, match="'dia'"):
        read_entries(tmp_path / "a.npz")


def test_npz_of_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", rows=[0, 2], cols=np.uint8([1, 0]), values=np.float32([0.5, 0]), shape=(4, 3))
    ratings = read_entries(tmp_path / "a.npz")
    assert ratings.shape == (4, 3)
    assert named(ratings) == [(0, 1, 0.5), (2, 0, 0.0)]  # a stored zero is an observed zero
    np.savez(tmp_path / "b.npz", rows=[0, 2], cols=[1, 0], values=[1, 2])
    assert read_entries(tmp_path / "b.npz").shape == (3, 2)


@pytest.mark.parametrize("rows", [np.uint8, np.int32, np.uint64, ">i4"])
@pytest.mark.parametrize("cols", [np.int64, np.uint16])
def test_npz_indices_of_any_width(tmp_path, rows, cols):
    last = 255
    np.savez(tmp_path / "a.npz", rows=np.array([0, last], rows), cols=np.array([1, 0], cols), values=[0.5, 2])
    ratings = read_entries(tmp_path / "a.npz")
    assert ratings.shape == (256, 2)
    assert named(ratings) == [(0, 1, 0.5), (last, 0, 2.0)]
    matrix = sparse().tocsr()
    arrays = {"format": b"csr", "shape": np.array([7, 5], rows), "data": matrix.data.astype(">f8")}
    np.savez(tmp_path / "b.npz", indices=matrix.indices.astype(cols), indptr=matrix.indptr.astype(rows), **arrays)
    assert np.array_equal(dense(read_entries(tmp_path / "b.npz")), matrix.toarray())


def _is_whole(path):
    """Whether the archive can be read all the same: not every bit of it matters."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return {name: file[name].size for name in file.files} == {"rows": 50, "cols": 50, "values": 50}
    except Exception:
        return False


def test_any_wrong_byte_of_an_npz_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, rows=np.arange(50), cols=np.arange(50), values=np.arange(50.0))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(whole), size=400):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        with contextlib.nullcontext() if _is_whole(path) else pytest.raises(ValueError, match=re.escape(str(path))):
            assert np.array_equal(read_entries(path).values, np.arange(50.0))


GOOD = {"rows": [0, 1], "cols": [0, 1], "values": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"values": [1.0, np.nan]}, "entry 1: the value is nan"),
        ({"values": [1.0]}, r"shapes \(2,\), \(2,\) and \(1,\)"),
        ({"values": ["1", "2"]}, "expected real numbers"),
        ({"values": [1j, 2j]}, "expected real numbers"),
        ({"values": np.array([1, None])}, "plain arrays"),
        ({"rows": [0.0, 1.0]}, "rows have dtype float64"),
        ({"rows": [0, -1]}, r"entry 1: \(-1, 1\) lies outside"),
        ({"shape": [2, 1]}, r"entry 1: \(1, 1\) lies outside the 2 x 1 table"),
        ({"shape": [2]}, "expected two integers"),
        ({"rows": [0, 2**40]}, "at most"),
        ({"rows": np.array([0, 2**64 - 1], np.uint64)}, "at most"),
        ({"rows": [0, 2**31 - 2]}, "out of proportion to 2 entries"),
        ({"shape": [2**31 - 1, 2]}, "out of proportion"),
        ({"values": np.array([1, np.finfo(np.longdouble).max])}, "double precision holds"),
        ({"rows": np.empty(0, int), "cols": np.empty(0, int), "values": []}, "no entries"),
    ],
)
def test_bad_npz_is_named(tmp_path, change, expected):
    path = tmp_path / "a.npz"
    np.savez(path, **(GOOD | change))
    with pytest.raises(ValueError, match=expected) as caught:
        read_entries(path)
    assert str(path) in str(caught.value)


def test_npz_of_something_else(tmp_path):
    np.savez(tmp_path / "a.npz", weights=np.ones(3))
    with pytest.raises(ValueError, match=r"\['weights'\]; expected rows, cols and values"):
        read_entries(tmp_path / "a.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    for content in (
        b"",
        b"rows,cols",
        (tmp_path / "a.npz").read_bytes()[:60],
        (tmp_path / "single.npy").read_bytes(),
    ):
        with pytest.raises(ValueError, match=r"not an \.npz file"):
            read_entries(written(tmp_path, content, "b.npz"))
    with pytest.raises(ValueError, match="unpack"):
        read_entries(written(tmp_path, b"", "a.npz.gz"))


def test_damaged_csr_is_refused(tmp_path):
    scipy.sparse.save_npz(tmp_path / "a.npz", sparse().asformat("csr"))
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    indptr = arrays["indptr"]
    for bad in (indptr[:-1], indptr + 1, np.append(indptr, indptr[-1]), indptr[:, None], indptr[::-1]):
        np.savez(tmp_path / "a.npz", **(arrays | {"indptr": bad}))
        with pytest.raises(ValueError, match=r"a\.npz: indptr"):
            read_entries(tmp_path / "a.npz")


@pytest.mark.parametrize("field", ["real", "integer"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["a.mtx", "a.mtx.gz"])
def test_matrix_market(tmp_path, field, symmetric, name):
    table = sparse(n1=6, n2=6).toarray()
    table = np.round(4 * table) if field == "integer" else table
    table = table + table.T if symmetric else table
    matrix = scipy.sparse.coo_array(table.astype(int) if field == "integer" else table)
    plain = tmp_path / "plain.mtx"
    kind = "symmetric" if symmetric else "general"
    scipy.io.mmwrite(plain, matrix, comment="made for a test", precision=17, symmetry=kind)
    ratings = read_entries(written(tmp_path, plain.read_bytes(), name))
    np.testing.assert_array_equal(dense(ratings), table)
    assert len(ratings.values) == matrix.nnz  # a diagonal entry is not doubled
    assert ratings.row_ids.tolist() == [1, 2, 3, 4, 5, 6]  # the numbers of the file


MM = "%%MatrixMarket matrix coordinate real general\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("1 1 1\n", "line 1: the header is '1 1 1'"),
        ("%%MatrixMarket matrix array real general\n1 1\n1\n", "line 1: the header .* array"),
        ("%%MatrixMarket matrix coordinate pattern general\n1 1 1\n1 1\n", "a pattern stores no values"),
        ("%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 0\n", "complex"),
        ("%%MatrixMarket matrix coordinate real skew-symmetric\n1 1 1\n1 1 1\n", "skew"),
        (MM, "line 2: the size is ''"),
        (MM + "% note\n2 2\n", "line 3: the size is '2 2'"),
        (MM + "2 2 0\n", "no entries"),
        (MM + "2 2 2\n1 1 1\n", "line 3: the file ends after 1 entries; its header promises 2"),
        (MM + "2 2 1\n1 1 1\n2 2 1\n", "after 2 entries; its header promises 1"),
        (MM + "2 2 1\n3 1 1\n", r"line 3: entry \(3, 1\) lies outside the 2 x 2"),
        (MM + "2 2 1\n0 1 1\n", r"line 3: entry \(0, 1\)"),
        (MM + "2 2 1\n1 1 nan\n", "line 3: the value is 'nan'"),
        (MM + "2 2 2\n1 1 1\n%\n1 x 1\n", "line 5: '1 x 1'"),
        (MM + "2 2 1\n1 1\n", "line 3: '1 1'; expected row number"),
        (MM + "2 2 1\n1 1 5 7\n", "line 3: '1 1 5 7'; expected row number"),
        (MM + "2 2 1\n1 1_0 5\n", "line 3: '1 1_0 5'; expected row number"),
        (MM + f"2 2 1\n{2**70} 1 5\n", "line 3: entry .* lies outside"),
        (MM + "1e30 2 1\n1 1 5\n", "line 2: the size is"),
        (MM + "9" * 5000 + " 2 1\n1 1 5\n", "line 2: the size is"),
        (MM + "2000000000 2 1\n1 1 5\n", "out of proportion to 1 entries"),
        (MM + "2 2 1\n" + "9" * 5000 + " 1 5\n", "line 3: '999"),
        (MM + "0 2 1\n1 1 5\n", "line 2: the size is 0 x 2"),
        (MM.replace("general", "symmetric") + "2 3 1\n1 1 1\n", "line 2: a symmetric matrix cannot be 2 x 3"),
    ],
)
def test_bad_matrix_market_is_named(tmp_path, text, expected):
    path = written(tmp_path, text, "a.mtx")
    with pytest.raises(ValueError, match=expected) as caught:
        read_entries(path)
    assert str(path) in str(caught.value)


def result(dtype=np.float32, **change):
    rng = np.random.default_rng(0)
    return {
        "left": rng.normal(size=(2, 1)).astype(dtype),
        "right": rng.normal(size=(3, 1)).astype(dtype),
        "row_ids": np.array(["ann", 'Doe, "Jo"']),
        "col_ids": np.array([10, 20, 30]),
        "rows": np.array([0, 1]),
        "cols": np.array([2, 0]),
        "predictions": np.array([0.1, 1 / 3], dtype),
        "extra": {"mean": np.float64(3.5)},
    } | change


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_result_comes_back(tmp_path, dtype):
    given = result(dtype)
    paths = write_result(tmp_path / "new" / "folder", **given)
    assert sorted(paths) == ["cols.csv", "factors.npz", "predictions.csv", "rows.csv"]
    with np.load(paths["factors.npz"]) as file:
        assert sorted(file.files) == ["left", "mean", "right"]
        assert np.array_equal(file["left"], given["left"])
        assert file["right"].dtype == dtype
        assert file["mean"] == 3.5
    assert paths["rows.csv"].read_text() == 'index,id\n0,ann\n1,"Doe, ""Jo"""\n'
    assert paths["cols.csv"].read_text() == "index,id\n0,10\n1,20\n2,30\n"
    back = read_entries(paths["predictions.csv"])
    assert [entry[:2] for entry in named(back)] == [("ann", "30"), ('Doe, "Jo"', "10")]
    assert np.array_equal(back.values.astype(dtype), given["predictions"])  # every digit


def test_result_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "cols.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"cols\.csv: already there"):
        write_result(tmp_path, **result())
    assert [path.name for path in tmp_path.iterdir()] == ["cols.csv"]
    write_result(tmp_path, **result(), overwrite=True)
    assert (tmp_path / "cols.csv").read_text().startswith("index,id")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("step", "count"), [("write", 1), ("sync", 1), ("sync", 4), ("rename", 1), ("rename", 4), ("rename", 6)]
)
def test_a_disk_that_fills_leaves_everything_as_it_was(tmp_path, monkeypatch, step, count):
    """Whichever call fails: nothing of a first result, all of an old one."""
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    write_result(old, **result())
    (old / "mine.txt").write_text("mine")
    before = files(old)
    owner, name = {"write": (np, "savez"), "sync": (os, "fsync"), "rename": (Path, "rename")}[step]
    real = getattr(owner, name)
    for folder in (old, new)[: 2 if count < 6 else 1]:  # eight renames to replace, four to write
        calls = iter(range(1, 100))

        def full(*args, _calls=calls, **rest):
            if next(_calls) == count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **rest)

        monkeypatch.setattr(owner, name, full)
        with pytest.raises(OSError, match=r"No space left on device.*nothing was changed") as caught:
            write_result(folder, **result(left=np.zeros((2, 1))), overwrite=True)
        assert str(folder) in str(caught.value)
        monkeypatch.setattr(owner, name, real)
    assert files(old) == before
    assert not (tmp_path / "deep").exists()


def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(FileExistsError, match=r"rows\.csv: already there"):
        write_result(tmp_path / "out", **result())
    (tmp_path / "elsewhere.csv").write_text("theirs")
    write_result(tmp_path / "out", **result(), overwrite=True)
    assert (tmp_path / "elsewhere.csv").read_text() == "theirs"
    assert not (tmp_path / "out" / "rows.csv").is_symlink()
    assert len(files(tmp_path / "out")) == 4


def test_places_that_cannot_be_written_to_are_refused_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken" / "rows.csv").mkdir(parents=True)
    for folder, text in (
        (tmp_path / "file", "file; expected a folder"),
        (tmp_path / "file" / "below", "file; expected a folder"),
        (tmp_path / "link", "link to nowhere"),
        (tmp_path / ("n" * 300), "too long"),
        (tmp_path / "/".join(["n" * 100] * 50), "too long"),
        (tmp_path / "taken", "rows.csv is a folder"),
    ):
        with pytest.raises(OSError, match=text):
            check_directory(folder, overwrite=True)
    check_directory(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"left": np.ones(2)}, "left has shape"),
        ({"row_ids": np.array(["a"])}, "left has shape"),
        ({"predictions": np.ones(3)}, "three vectors"),
        ({"rows": np.array([0, 2])}, "rows run from 0 to 2, but there are 2 ids"),
        ({"cols": np.array([-1, 0])}, "cols run from -1"),
        ({"extra": {"right": 1}}, "'right' is the name of a factor"),
    ],
)
def test_result_is_checked_before_anything_is_written(tmp_path, change, expected):
    with pytest.raises(ValueError, match=expected):
        write_result(tmp_path / "out", **result(**change))
    assert not (tmp_path / "out").exists()


def test_result_without_predictions(tmp_path):
    none = np.empty(0, int)
    paths = write_result(tmp_path, **result(rows=none, cols=none, predictions=np.empty(0), extra=None))
    assert paths["predictions.csv"].read_text() == "row,column,prediction\n"


def test_reading_needs_no_scipy(tmp_path):
    scipy.sparse.save_npz(tmp_path / "a.npz", sparse())
    code = (
        "import sys; from lrjax.cli.tables import read_entries\n"
        "read_entries(sys.argv[1]); assert 'scipy.sparse' not in sys.modules"
    )
    path = tmp_path / "a.npz"
    subprocess.run([sys.executable, "-c", code, path], check=True)
