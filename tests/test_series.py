"""The user's own series: what a file says is what is read, and what is wrong with it is named with its place."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from tfseq.data import DATASETS, SPLITS, data_hash, load_dataset, series, splits_of
from tfseq.data.series import load_earthquakes, load_series
from tfseq.writers import write_samples


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def csv_of(tmp_path):
    """`csv_of(text)` -> the series of a CSV file with it."""
    return lambda text, encoding="utf-8": load_series(write(tmp_path / "mine.csv", text, encoding))


@pytest.fixture
def npz_of(tmp_path):
    """`npz_of(x=...)` -> the series of an NPZ file with these arrays."""

    def load(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return load_series(tmp_path / "mine.npz")

    return load


def lists(arrays):
    return [a.tolist() for a in arrays]


# Earthquakes.


def test_earthquakes_are_those_of_the_book():
    data = load_dataset("earthquakes")
    (x,) = data.x
    assert (
        x.shape == (107, 1) and x.dtype == np.float32 and (data.step, data.name, data.split) == ("year", "earthquakes", "train")
    )
    assert (x[0, 0], x[-1, 0], x.min(), x.max()) == (13, 11, 6, 41)
    # the published log-likelihood of a single Poisson (Zucchini, MacDonald & Langrock 2016, ch. 1): -391.9189
    rate = float(x.mean())
    log_prob = sum(n * math.log(rate) - rate - math.lgamma(n + 1) for n in x[:, 0].tolist())
    assert log_prob == pytest.approx(-391.9189, abs=5e-5)


def test_earthquakes_have_no_other_split():
    assert DATASETS["earthquakes"].splits == splits_of("earthquakes") == ("train",)
    with pytest.raises(ValueError, match="`split` must be one that earthquakes has, which are: train; received 'test'"):
        load_dataset("earthquakes", "test")
    with pytest.raises(ValueError, match="`split`"):
        load_earthquakes("valid")


# CSV.


def test_a_plain_file_is_one_sequence(csv_of):
    data = csv_of("price,volume\n1.5,2\n-3e-2, 4 \n")
    assert lists(data.x) == [[[1.5, 2.0], [pytest.approx(-0.03), 4.0]]] and data.x[0].dtype == np.float32
    assert (data.observed, data.u, data.y) == (None, None, None)
    assert (list(data.names), data.name, data.split, data.step, data.source) == (
        ["mine"],
        "mine",
        "train",
        "step",
        "the user's file mine.csv",
    )


def test_all_that_a_file_may_hold(csv_of):
    text = """sequence,step,temp,u_heat,y,wind
b,Monday,1,0.5,2,10
b,Tuesday,,0,,NaN
a,Monday,3,1,-1,NA
"""
    data = csv_of(text)
    assert list(data.names) == ["b", "a"] and data.lengths.tolist() == [2, 1]
    assert lists(data.x) == [[[1, 10], [0, 0]], [[3, 0]]]
    assert lists(data.observed) == [[[True, True], [False, False]], [[True, False]]]
    assert lists(data.u) == [[[0.5], [0.0]], [[1.0]]] and data.u[0].dtype == np.float32
    assert lists(data.y) == [[2, -1], [-1]] and data.y[0].dtype == np.int32


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimiters_ends_of_lines_and_byte_order_marks(csv_of, delimiter, end, encoding):
    data = csv_of(end.join(delimiter.join(row) for row in (["größe", '"a,b"'], ["1", "2"], ["3", '"4"'])) + 3 * end, encoding)
    assert lists(data.x) == [[[1, 2], [3, 4]]]


def test_a_single_column(csv_of):
    data = csv_of("x\n1\n\n3\n\n\n")  # an empty line is an empty cell, but not at the end
    assert lists(data.x) == [[[1], [0], [3]]] and lists(data.observed) == [[[True], [False], [True]]]


def test_symbols(csv_of):
    data = csv_of("sequence,symbol\na,2\na,3.0\nb,\n")
    assert lists(data.x) == [[2, 3], [0]] and data.x[0].dtype == np.int32
    assert lists(data.observed) == [[True, True], [False]]
    assert lists(csv_of("symbol,other\n1,-2.5\n").x) == [[[1, -2.5]]]  # beside another feature, one like any


def test_labels_and_controls_without_missing_values(csv_of):
    data = csv_of("y,u_a,x,u_b\n0,1,2,3\n1,4,5,6\n")
    assert (lists(data.x), lists(data.u), lists(data.y)) == ([[[2], [5]]], [[[1, 3], [4, 6]]], [[0, 1]])
    assert data.observed is None


def test_more_rows_than_are_text_at_one_time(csv_of, monkeypatch):
    monkeypatch.setattr(series, "_BLOCK", 3)
    text = "sequence,x\n" + "".join(f"{'ab'[i > 4]},{i}\n" for i in range(10))
    assert lists(csv_of(text).x) == [[[i] for i in range(5)], [[i] for i in range(5, 10)]]
    with pytest.raises(ValueError, match="line 12"):
        csv_of(text + "a,3\n")


def test_samples_are_read_back(tmp_path, rng):
    x = [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 1)]
    for suffix in (".csv", ".npz"):
        (path,) = write_samples(tmp_path / f"new{suffix}", x)
        data = load_series(path)
        assert data_hash(data) == data_hash(series.Sequences(x)) and data.lengths.tolist() == [4, 1]
    (path,) = write_samples(tmp_path / "named.csv", x, columns=["a,b", "größe", "y0"])
    data = load_series(path)
    assert data_hash(data) == data_hash(series.Sequences(x)) and data.columns == ["a,b", "größe", "y0"]
    symbols = [np.array([3, 0, 2]), np.array([1])]
    for suffix in (".npz", ".csv"):
        (path,) = write_samples(tmp_path / f"symbols{suffix}", symbols)
        assert lists(load_series(path).x) == lists(symbols) and load_series(path).x[0].dtype == np.int32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv must begin with a header line, .*; its first line is empty"),
        ("\nx\n1\n", "its first line is empty"),
        ("x,z\n", "must have a row per step after its header; it has none"),
        ("x\n\n\n", "it has none"),
        ("1,2\n3,4\n", r"header line, the names of the columns; received numbers: \['1', '2'\]"),
        (",x\n0,1\n", "line 1: every column must have a name; column 1 has none.*step.*index=False"),
        ("x,z,x\n1,2,3\n", "line 1: the columns must have different names; these repeat: x"),
        ("sequence,step,u_a,y\na,1,2,3\n", "line 1: there must be a column of a feature.*sequence, step, u_a, y"),
        ("x,z\n1,2\n3\n", "line 3: a row must have 2 cells, as the header; received 1"),
        ("x,z\n1,2\n3,4,5\n", "line 3: a row must have 2 cells, as the header; received 3.*decimal point a comma"),
        ("x,z\n1,2\n\n3,4\n", "line 3: a row must have 2 cells, as the header; the line is empty"),
        (
            "x,z\n1,2\n3,four\n",
            "line 3, column 'z': a value must be a finite number.*received 'four'. Only sequence and columns of time",
        ),
        ("x;z\n1;2,5\n", "line 2, column 'z'.*received '2,5'. Decimals have a point"),
        ("x\n1_000\n", "line 2, column 'x'.*received '1_000'"),
        ("x\ninf\n", "line 2, column 'x'.*received 'inf'"),
        ("x\n1e39\n", "line 2, column 'x'.*received '1e39'"),
        ("symbol\n1.5\n", "line 2, column 'symbol': a value must be a whole number from 0 to 2147483647.*received '1.5'"),
        ("symbol\n-1\n", "column 'symbol'.*received '-1'"),
        ("symbol\n2147483648\n", "column 'symbol'.*received '2147483648'"),
        ("x,y\n1,0.5\n", "column 'y': a value must be a whole number from -1 to.*received '0.5'"),
        ("x,y\n1,-2\n", "column 'y'.*received '-2'"),
        ("x,u_a\n1,2\n3,\n", "line 3, column 'u_a': a value must be a finite number; controls cannot be missing; received ''"),
        ("sequence,x\na,1\nb,2\na,3\n", "line 4, column 'sequence': .* must stand together.*'a' ended before.*Sort"),
        ("sequence,x\na,1\n ,2\n", "line 3, column 'sequence'.*the cell is empty"),
        ('x,z\n1,"2\n3,4\n', "is no readable CSV file: unexpected end of data.*quotation mark"),
        ('x,z\n1,"2"3\n', "is no readable CSV file"),
        ('x,z\n"1\n2",3\n', "line 3, column 'x'"),  # the line a row ends in
    ],
)
def test_csv_files_that_are_wrong(csv_of, text, message):
    with pytest.raises(ValueError, match=f"(?s)mine.csv.*{message}" if not message.startswith("mine") else message):
        csv_of(text)


def test_csv_files_that_are_no_text(tmp_path):
    for name, content in (("latin", "größe\n1\n".encode("latin-1")), ("utf16", "x\n1\n".encode("utf-16"))):
        (tmp_path / f"{name}.csv").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.csv must be UTF-8 text"):
            load_series(tmp_path / f"{name}.csv")
    (tmp_path / "binary.csv").write_bytes(b"x\n1\n\x00\x01\n")
    with pytest.raises(ValueError, match="binary.csv"):
        load_series(tmp_path / "binary.csv")


# Time stamps.


@pytest.mark.parametrize(
    ("text", "columns", "step"),
    [
        ("step,x\n0,1\n1,2\n", ["x"], "step"),
        ("x,Date\n1,2020-01-31\n2,2020-02-01\n", ["x"], "step"),
        ("date,x\n19580329,1\n19580405,2\n", ["x"], "step"),
        ("YEAR,x\n1900,1\n1901,2\n", ["x"], "year"),
        ("quarter,x,year\n1,1,2000\n2,3,2000\n1,5,2001\n", ["x"], "quarter"),
        ("date,time,x\n2020-01-01,23:00,1\n2020-01-02,01:00,2\n", ["x"], "step"),
        ("time,x\n2020-01,1\n2020-02,2\n", ["x"], "step"),
        ("time,x\n2020-10-25T02:30+02:00,1\n2020-10-25T02:10+01:00,2\n", ["x"], "step"),  # summer time ends
        ("step,x\nTuesday,1\nMonday,2\n", ["x"], "step"),
        ("step,x\n,1\n,2\n", ["x"], "step"),
        ("sequence,step,x\na,5,1\na,6,2\nb,0,3\n", ["x"], "step"),
    ],
)
def test_time_stamps_are_no_features(csv_of, monkeypatch, text, columns, step):
    for block in (2**16, 1):
        monkeypatch.setattr(series, "_BLOCK", block)
        data = csv_of(text)
        assert (data.columns, data.step, data.x[0].shape[1]) == (columns, step, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,x\n0,1\n1,2\n1,3\n", "line 4, column 'step': time stamps must increase.*received '1' after '1'.*Sort"),
        ("date,x\n2020-02-01,1\n2020-01-31,2\n", "line 3, column 'date'.*'2020-01-31' after '2020-02-01'"),
        ("sequence,time,x\na,1,1\nb,2,1\nb,1.5,1\n", "line 4, column 'time'.*'1.5' after '2'"),
        ("year,quarter,x\n2000,1,1\n2000,3,1\n2000,2,1\n", "line 4, column 'year' and 'quarter'.*'2000 2' after '2000 3'"),
        ("date,x\n2020-02-01,1\n2020-02-30,2\n", "line 3, column 'date': a time stamp must be an ISO date.*'2020-02-30'"),
        ("step,x\n1,1\n,2\n", "line 3, column 'step': a time stamp must be a number, as in the rows before; received ''"),
        ("step,x\n1,1\ninf,2\n", "line 3, column 'step': a time stamp must be a number.*'inf'"),
        ("date,year\n1,1\n", "line 1: there must be a column of a feature.*Columns of time, step.*are no features"),
    ],
)
def test_time_stamps_must_increase_within_a_sequence(csv_of, monkeypatch, text, message):
    for block in (2**16, 1):
        monkeypatch.setattr(series, "_BLOCK", block)
        with pytest.raises(ValueError, match=f"mine.csv, {message}"):
            csv_of(text)


def test_published_series_load_as_they_are(data_folder):
    # rows, columns and missing values as the files have them: `wc -l`, `head -1`, `grep -c ,$`
    wanted = {
        "nile": (100, ["volume"], "year", 0),
        "sunspots": (309, ["SUNACTIVITY"], "year", 0),
        "co2": (2284, ["co2"], "step", 59),
        "elnino": (61, ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"], "year", 0),
    }
    for name, (steps, columns, step, missing) in wanted.items():
        data = load_dataset(data_folder / "series" / f"{name}.csv")
        assert (data.lengths.tolist(), data.columns, data.step) == ([steps], columns, step)
        assert (0 if data.observed is None else int((~data.observed[0]).sum())) == missing
    macro = load_dataset(data_folder / "series" / "macrodata.csv")
    assert (macro.step, macro.x[0].shape, macro.columns[0]) == ("quarter", (203, 12), "realgdp")


# NPZ.


def test_npz_of_one_sequence(npz_of):
    data = npz_of(x=np.array([[1.0, np.nan], [3.0, 4.0]]), u=np.ones((2, 1)), y=np.array([1, -1]))
    assert (lists(data.x), lists(data.observed)) == ([[[1, 0], [3, 4]]], [[[True, False], [True, True]]])
    assert (lists(data.u), lists(data.y), list(data.names)) == ([[[1], [1]]], [[1, -1]], ["mine"])
    assert [a[0].dtype for a in (data.x, data.observed, data.u, data.y)] == [np.float32, bool, np.float32, np.int32]
    assert lists(npz_of(x=np.array([3, 0, 1], np.uint8)).x) == [[3, 0, 1]]
    assert lists(npz_of(x=np.array([[True, False]])).x) == [[[1, 0]]]


def test_npz_of_several_sequences(npz_of):
    x = np.arange(12.0).reshape(2, 3, 2)
    x[1, 1:] = np.nan  # padding may hold anything
    data = npz_of(x=x, lengths=np.array([3, 1]), u=x[..., :1], y=np.array([[0, 1, 2], [3, -9, -9]]))
    assert lists(data.x) == [x[0].tolist(), x[1, :1].tolist()] and data.observed is None
    assert (lists(data.u), lists(data.y)) == ([[[0], [2], [4]], [[6]]], [[0, 1, 2], [3]])
    assert list(data.names) == ["mine-1", "mine-2"]
    assert npz_of(x=np.ones((2, 3, 1), int)).lengths.tolist() == [3, 3]
    whole = npz_of(x=x, lengths=np.array([3, 1]), y=np.array([2, -1]))
    assert (
        all(isinstance(label, np.int32) for label in whole.y)
        and whole.padded()["y"].tolist() == [2, -1]
        and whole.padded()["y"].dtype == np.int32
    )
    symbols = npz_of(x=np.array([[1, 2], [3, -5]]), lengths=np.array([2, 1]))
    assert lists(symbols.x) == [[1, 2], [3]] and symbols.x[0].dtype == np.int32


def test_what_is_not_observed_may_be_anything(npz_of):
    data = npz_of(x=np.array([[np.inf], [np.nan], [2.0]]), observed=np.array([[False], [True], [True]]))
    assert (lists(data.x), lists(data.observed)) == ([[[0], [0], [2]]], [[[False], [False], [True]]])
    data = npz_of(x=np.array([-7, 2]), observed=np.array([False, True]))
    assert (lists(data.x), lists(data.observed)) == ([[0, 2]], [[False, True]])


FLOATS, WHOLES = np.zeros((4, 2)), np.zeros((4, 2), int)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "must hold x, and nothing beside lengths, observed, u, y; received y"),
        ({"x": FLOATS, "lenghts": np.zeros(3)}, "received x, lenghts. Did you mean 'lengths'"),
        ({"x": np.array(["a"])}, "`x` must be numbers"),
        ({"x": np.zeros((1, 2), complex)}, "`x` must be numbers"),
        ({"x": np.array([None])}, "no readable .npz file of plain arrays.*allow_pickle"),
        ({"x": np.float32(3)}, r"`x` must be numbers .*received float32 of shape \[\]"),
        ({"x": np.zeros((1, 1, 1, 1))}, "`x` must be numbers"),
        ({"x": WHOLES}, r"`x` of two axes must be floats.*int64 of shape \[4, 2\], which could be either.*lengths"),
        ({"x": FLOATS, "lengths": np.ones(4, int)}, r"symbols must be whole numbers.*with `lengths`. .*x\[..., None\]"),
        ({"x": np.zeros(3)}, "symbols must be whole numbers; received float64"),
        ({"x": np.zeros(3, int), "lengths": np.ones(3, int)}, "`lengths` must come with several sequences"),
        ({"x": WHOLES, "lengths": np.ones(3, int)}, r"`lengths` must be whole numbers \[4\]; received int64 of shape \[3\]"),
        ({"x": WHOLES, "lengths": np.ones(4)}, "`lengths` must be whole numbers"),
        ({"x": WHOLES, "lengths": np.full(4, 3)}, r"`lengths` must lie in \[0, 2\].*received \[3, 3, 3, 3\]"),
        ({"x": WHOLES, "lengths": np.full(4, -1)}, "`lengths` must lie in"),
        ({"x": WHOLES, "lengths": np.zeros(4, int)}, "`x` must have steps and features"),
        ({"x": np.zeros((0, 2))}, r"`x` must have steps and features; received shape \[0, 2\]"),
        ({"x": np.zeros((0, 2, 2))}, "`x` must have steps and features"),
        ({"x": np.zeros((2, 0))}, "`x` must have steps and features"),
        ({"x": FLOATS, "observed": WHOLES}, r"`observed` must be bool of the shape of `x`, \[4, 2\]; received int64"),
        ({"x": FLOATS, "observed": np.ones(4, bool)}, "`observed` must be bool"),
        ({"x": FLOATS, "u": np.zeros((3, 1))}, r"`u` must be numbers \[4, U\]; received float64 of shape \[3, 1\]"),
        ({"x": FLOATS, "u": np.zeros(4)}, "`u` must be numbers"),
        ({"x": FLOATS, "u": np.full((4, 1), np.nan)}, r"value of `u` must be .*received nan at index \[0, 0\]"),
        ({"x": FLOATS, "y": np.zeros((4, 1), int)}, r"`y` must be whole numbers \[4\]"),
        (
            {"x": FLOATS[None], "y": np.zeros(4, int)},
            r"`y` must be whole numbers \[1, 4\], or \[1\]; received int64 of shape \[4\]",
        ),
        ({"x": FLOATS[None], "y": np.array([-2])}, r"value of `y` must be a whole number.*received -2 at index \[0\]"),
        ({"x": FLOATS, "y": np.array([0, 0, 0.5, 0])}, r"value of `y` must be a whole number.*received 0.5 at index \[2\]"),
        ({"x": FLOATS + np.inf}, r"value of `x` must be a finite number.*received inf at index \[0, 0\]"),
        ({"x": np.full((2, 1, 1), 1e39)}, r"received 1e\+39 at index \[0, 0, 0\]"),
        ({"x": np.array([0, -1])}, r"value of `x` must be a whole number from 0.*received -1 at index \[1\]"),
    ],
)
def test_npz_files_that_are_wrong(npz_of, arrays, message):
    with pytest.raises(ValueError, match=f"mine.npz.*{message}"):
        npz_of(**arrays)


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"x\n1\n"])
def test_npz_files_that_are_damaged(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(ValueError, match="mine.npz is no readable .npz file"):
        load_series(tmp_path / "mine.npz")


# Files, folders, splits.


def test_a_file_has_only_the_split_train(tmp_path):
    file = write(tmp_path / "mine.csv", "x\n1\n")
    assert splits_of(file) == ("train",) and load_dataset(str(file)).name == "mine"
    with pytest.raises(ValueError, match="`split` must be one that .*mine.csv has, which are: train; received 'valid'"):
        load_dataset(file, "valid")
    with pytest.raises(ValueError, match="`split` must be one of"):
        load_series(file, "valid")


def test_a_folder_has_a_file_for_each_split(tmp_path):
    write(tmp_path / "train.csv", "x\n1\n")
    np.savez(tmp_path / "test.npz", x=np.array([[2.0]]))
    write(tmp_path / "notes.csv", "not read")
    assert splits_of(tmp_path) == ("train", "test")
    data = [load_dataset(tmp_path, split) for split in ("train", "test")]
    assert [lists(each.x) for each in data] == [[[[1]]], [[[2]]]]
    assert [(each.name, each.split) for each in data] == [(tmp_path.name, "train"), (tmp_path.name, "test")]
    with pytest.raises(ValueError, match="which are: train, test; received 'valid'"):
        load_dataset(tmp_path, "valid")
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        load_dataset(tmp_path, "trian")
    write(tmp_path / "test.csv", "x\n1\n")
    with pytest.raises(ValueError, match=r"must have one file for each split; 'test' has test.csv and test.npz"):
        splits_of(tmp_path)


def test_folders_of_music_are_as_before(tmp_path):
    assert splits_of(tmp_path) == SPLITS
    (tmp_path / "train").mkdir()
    assert splits_of(tmp_path) == ("train",)
    with pytest.raises(ValueError, match="which are: train; received 'valid'"):
        load_dataset(tmp_path, "valid")


@pytest.mark.parametrize("name", ["absent.csv", "mine.xlsx", "absent"])
def test_paths_of_nothing(tmp_path, name):
    write(tmp_path / "mine.xlsx", "x\n1\n")
    with pytest.raises(ValueError, match=r"`name` must be a data set, the path of a .csv or .npz file.*received"):
        splits_of(tmp_path / name)
    with pytest.raises(ValueError, match="`path` must be an existing .csv or .npz file"):
        load_series(tmp_path / name)


def test_size_is_bounded(tmp_path, monkeypatch):
    file = write(tmp_path / "mine.csv", "x\n" + "1\n" * 2000)
    np.savez_compressed(tmp_path / "small.npz", x=np.zeros((500, 2)))  # of which a few hundred bytes are on the disk
    monkeypatch.setattr(series, "MAX_BYTES", 3000)
    for path in (file, tmp_path / "small.npz"):
        with pytest.raises(ValueError, match=f"{path.name} must have at most 3000 bytes; received"):
            load_series(path)


def test_columns_are_those_of_the_features():
    x = [np.zeros((2, 1), np.float32)]
    assert data_hash(series.Sequences(x, columns=["a"])) == data_hash(series.Sequences(x))  # names do not count
    assert series.Sequences(x, columns=["a"]).take([0]).columns == ["a"]
    with pytest.raises(ValueError, match=r"`columns` must have a name for each.*received 2 for x\[0\] of shape \[2, 1\]"):
        series.Sequences(x, columns=["a", "b"])


def test_labels_count_in_the_hash_only_where_there_are_any():
    x = [np.zeros((2, 1), np.float32)]
    plain, labelled, other = (
        data_hash(series.Sequences(x, y=y)) for y in (None, [np.zeros(2, np.int32)], [np.ones(2, np.int32)])
    )
    assert len({plain, labelled, other}) == 3
    # sha256 of the text and bytes that data without labels had before there were any
    import hashlib

    content = b"x 1\n<f4 (2, 1)\n" + bytes(8) + b"observed None\nu None\n"
    assert plain == hashlib.sha256(content).hexdigest()


def test_reading_warns_of_nothing(csv_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        csv_of("x\n1\nnan\n")
