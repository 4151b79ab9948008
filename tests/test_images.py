"""Pictures: what the files say is what is read, and what is wrong with them is named with its place."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tfseq.data import DATASETS, SPLITS, data_hash, images, load_dataset, series, splits_of
from tfseq.data.images import load_digits, load_images, load_mnist, read_idx, splits_in

IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(array: np.ndarray) -> bytes:
    """An IDX file, written from its definition."""
    array = np.asarray(array)
    header = bytes([0, 0, IDX_CODES[array.dtype.name], array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def greys(num: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, *shape)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of IDX files: 20 pictures to train and 3 to test, of 2 x 3 pixels."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(greys(20, 2, 3))))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(20, dtype=np.uint8))))
    (path / "t10k-images-idx3-ubyte").write_bytes(idx(greys(3, 2, 3, seed=1)))
    (path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([7, 8, 9], np.uint8)))
    return path


@pytest.fixture
def npz_of(tmp_path):
    """`npz_of(x=..., ...)` -> the path of an NPZ file with these arrays."""

    def write(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return tmp_path / "mine.npz"

    return write


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No download, and nothing in the cache."""

    def retrieve(url, *_, **__):
        raise OSError(f"no network for {url}")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setenv("TFSEQ_CACHE", str(tmp_path / "cache"))


# Digits.


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    from sklearn.datasets import load_digits as bundled

    splits = [load_dataset("digits", split) for split in SPLITS]
    assert [len(data) for data in splits] == [1297, 200, 300] and splits_of("digits") == SPLITS
    for data, split in zip(splits, SPLITS, strict=True):
        assert data.x.shape == (len(data), 1, 64) and data.y.shape == (len(data), 1)
        assert (data.x.dtype, data.y.dtype, data.x.min(), data.x.max()) == (np.float32, np.int32, 0.0, 1.0)
        assert (data.shape, data.step, data.name, data.split) == ((8, 8), "picture", "digits", split)
    all_of_them = np.concatenate([np.hstack([data.x[:, 0] * 16, data.y]) for data in splits])
    np.testing.assert_array_equal(np.unique(all_of_them, axis=0), np.unique(np.column_stack(bundled(return_X_y=True)), axis=0))


def test_the_split_of_digits_is_fixed():
    # numbers that changed would make figures of different versions say nothing about each other
    first = {split: load_digits(split).y[:8, 0].tolist() for split in SPLITS}
    assert first == {"train": [2, 8, 2, 6, 6, 7, 1, 9], "valid": [0, 9, 6, 9, 8, 4, 5, 8], "test": [8, 8, 2, 2, 2, 9, 8, 8]}
    with pytest.raises(ValueError, match="`split`.*Did you mean 'train'"):
        load_digits("trian")


# MNIST.


@pytest.fixture
def mnist_folder(data_folder: Path) -> Path:
    if not (data_folder / "mnist").is_dir():
        pytest.skip(f"needs the files of MNIST in {data_folder / 'mnist'} (or in mnist/ of TFSEQ_DATA)")
    return data_folder


def test_mnist_has_its_published_counts(mnist_folder):
    splits = [load_dataset("mnist", split, data_dir=mnist_folder) for split in SPLITS]
    assert [data.x.shape for data in splits] == [(55000, 1, 784), (5000, 1, 784), (10000, 1, 784)]
    train, valid, test = splits
    assert (train.x.dtype, train.x.min(), train.x.max(), train.shape) == (np.float32, 0.0, 1.0, (28, 28))
    assert train.y[:10, 0].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the first of the published training set
    assert test.y[:10, 0].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # digits of the 60,000 (LeCun's table, as every description of the set repeats it)
    counts = np.bincount(np.concatenate([train.y, valid.y])[:, 0])
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # the mean grey by which everybody normalises MNIST: 0.1307
    mean = (train.x.mean(dtype=float) * 55 + valid.x.mean(dtype=float) * 5) / 60
    assert mean == pytest.approx(0.1307, abs=5e-5)


def test_mnist_is_found_unpacked_and_beside_other_data(mnist_folder, tmp_path, offline):
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(gzip.decompress((mnist_folder / "mnist" / f"{name}.gz").read_bytes()))
    data = load_dataset("mnist", "test", data_dir=tmp_path)
    assert data_hash(data) == data_hash(load_dataset("mnist", "test", data_dir=mnist_folder))
    # the same files as a folder of one's own, where valid is cut from train
    assert data_hash(load_dataset(mnist_folder / "mnist", "test")) == data_hash(data)


def test_other_pictures_with_the_names_of_mnist(folder):
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz must be MNIST's.*found.*in 136 bytes.*Fashion-MNIST"):
        load_mnist("train", data_dir=folder)


def test_mnist_that_is_not_there_says_what_to_do(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("mnist", data_dir=tmp_path)
    for words in ("mnist/train-images-idx3-ubyte.gz", "https://storage.googleapis.com/", "--data-dir", "no network"):
        assert words in str(error.value)
    with pytest.raises(FileNotFoundError, match="`data_dir` must be an existing folder"):
        load_dataset("mnist", data_dir=tmp_path / "typo")


def test_a_downloaded_mnist_is_checked_twice(tmp_path, monkeypatch):
    """The archive by pooch, against the published hash; what it unpacks to by us."""
    asked = []

    def retrieve(url, known_hash, fname, path, **_):
        asked.append((url, known_hash, path))
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / fname).write_bytes(gzip.compress(idx(greys(2, 2, 2))))
        return Path(path) / fname

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setenv("TFSEQ_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="mnist/t10k-images-idx3-ubyte.gz must be MNIST's"):
        load_mnist("test")
    name, packed, _ = images._MNIST["test", "images"]
    assert asked == [(f"{images._MNIST_URL}{name}.gz", f"sha256:{packed}", tmp_path / "mnist")]


# IDX.


@pytest.mark.parametrize("dtype", IDX_CODES)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_of_every_type(dtype, packed, tmp_path):
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "any-name"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.dtype(dtype) and found.dtype.isnative


GOOD = idx(greys(2, 3, 2))


def packed(content: bytes) -> bytes:
    """With gzip, without the time."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "must begin with the 4 bytes of an IDX file; it has none. It is cut off", id="empty"),
        pytest.param(b"\0\0\x08", "must begin with the 4 bytes of an IDX file; it has 3", id="three bytes"),
        pytest.param(
            b"\x89PNG" + bytes(20),
            "offset 0: an IDX file must begin with two zeros, a type.*received 89 50 4e 47.*another kind",
            id="png",
        ),
        pytest.param(b"\0\0\x07\x03" + GOOD[4:], "offset 0.*received 00 00 07 03", id="unknown type"),
        pytest.param(b"\0\0\x08\x00" + GOOD[4:], "offset 0.*axes .1 to 3.; received 00 00 08 00", id="no axes"),
        pytest.param(b"\0\0\x08\x04" + GOOD[4:], "offset 0.*received 00 00 08 04", id="four axes"),
        pytest.param(GOOD[:9], "must have a header of 16 bytes; it ends at offset 9", id="cut in the header"),
        pytest.param(
            idx(greys(0, 3, 2)),
            r"offset 4: the sizes of the axes must be positive; received \[0, 3, 2\]. Is the file empty",
            id="no pictures",
        ),
        pytest.param(
            GOOD[:16], r"must have 28 bytes for uint8 of shape \[2, 3, 2\]; it ends at offset 16. It is cut off", id="no values"
        ),
        pytest.param(GOOD[:-1], "must have 28 bytes.*ends at offset 27", id="one byte less"),
        pytest.param(GOOD + b"\0\0\0", "must have 28 bytes.*3 more come after it", id="more bytes"),
        pytest.param(
            b"\0\0\x08\x03" + b"\xff" * 12,
            r"of shape \[4294967295, 4294967295, 4294967295\]; it ends at offset 16",
            id="huge sizes",
        ),
        pytest.param(packed(GOOD)[:-12], r"must be a whole gzip file; it could be unpacked up to offset \d+", id="cut gzip"),
        pytest.param(
            packed(GOOD)[:-8] + b"\0" * 8, "must be a whole gzip file; it could be unpacked up to offset.*CRC", id="other crc"
        ),
        pytest.param(packed(GOOD)[:12] + b"\xff\xff\xff", "must be a whole gzip file", id="broken gzip"),
        pytest.param(
            packed(GOOD) + b"more", "must be a whole gzip file; it could be unpacked up to offset 28", id="bytes after gzip"
        ),
        pytest.param(packed(packed(GOOD)), "offset 0.*received 1f 8b", id="packed twice"),
        pytest.param(packed(GOOD + b"\0"), "1 more come after it", id="packed with more bytes"),
    ],
)
def test_idx_files_that_are_wrong(content, message, tmp_path):
    (tmp_path / "bad.gz").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.gz.*{message}"):
        read_idx(tmp_path / "bad.gz")


def test_what_a_file_unpacks_to_is_bounded(tmp_path, monkeypatch, npz_of):
    monkeypatch.setattr(series, "MAX_BYTES", 3000)
    monkeypatch.setattr(images, "_BLOCK", 1000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(ValueError, match="bomb.gz must have at most 3000 bytes; received 4000"):  # and read no more
        read_idx(tmp_path / "bomb.gz")
    np.savez_compressed(tmp_path / "bomb.npz", x_train=np.zeros((100, 100), np.uint8))
    with pytest.raises(ValueError, match="bomb.npz must have at most 3000 bytes"):
        load_images(tmp_path / "bomb.npz")


# A folder of IDX files.


def test_a_folder_of_idx_files(folder):
    assert splits_of(folder) == SPLITS
    splits = {split: load_dataset(folder, split) for split in SPLITS}
    train = greys(20, 2, 3).reshape(20, 1, 6)
    for split, x, y in (
        ("train", train[:18], np.arange(18)),
        ("valid", train[18:], np.arange(18, 20)),  # the last tenth
        ("test", greys(3, 2, 3, seed=1).reshape(3, 1, 6), np.array([7, 8, 9])),
    ):
        data = splits[split]
        np.testing.assert_array_equal(data.x, x.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(data.y[:, 0], y)
        assert (data.x.dtype, data.y.dtype, data.y.shape) == (np.float32, np.int32, (len(x), 1))
        assert (data.shape, data.step, data.name, data.split) == ((2, 3), "picture", "mine", split)
    assert splits["test"].source == "the user's file t10k-images-idx3-ubyte"


def test_a_folder_may_have_valid_and_may_lack_labels(folder):
    for file in folder.glob("*labels*"):
        file.unlink()
    (folder / "Valid-Images.idx").write_bytes(idx(greys(4, 2, 3, seed=2)))
    assert [(len(data), data.y) for data in (load_images(folder, split) for split in SPLITS)] == [
        (20, None),
        (4, None),
        (3, None),
    ]
    for file in folder.glob("train*"):
        file.unlink()
    assert splits_of(folder) == ("valid", "test")
    with pytest.raises(ValueError, match="which are: valid, test; received 'train'"):
        load_dataset(folder)
    with pytest.raises(ValueError, match=r"`split` must be one of \['valid', 'test'\]"):
        load_images(folder)


def test_of_packed_and_unpacked_the_unpacked_is_read(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx(greys(20, 2, 3, seed=5)))
    np.testing.assert_array_equal(load_images(folder).x[:, 0], greys(20, 2, 3, seed=5).reshape(20, 6)[:18] / np.float32(255))
    (folder / "train-images.idx").write_bytes(b"")
    with pytest.raises(
        ValueError, match="must have one file of train images; it has train-images-idx3-ubyte and train-images.idx"
    ):
        splits_of(folder)


def test_real_values_are_taken_as_they_are(folder, rng):
    x = rng.normal(size=(20, 6))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(x))  # not packed, whatever its name says
    data = load_images(folder)
    np.testing.assert_array_equal(data.x[:, 0], x[:18].astype(np.float32))
    assert data.shape is None  # 6 is no square


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train-labels-idx1-ubyte.gz": np.zeros(19, np.uint8)}, r"Labels of .*train-images.* each of its 20.*shape \[19\]"),
        ({"train-labels-idx1-ubyte.gz": greys(20, 2, 3)}, r"Labels of .*shape \[20, 2, 3\]"),
        ({"train-labels-idx1-ubyte.gz": np.zeros(20)}, "Labels of .*received float64"),
        ({"train-labels-idx1-ubyte.gz": np.full(20, -2, np.int8)}, r"must lie from -1 \(not known\).*received -2 to -2"),
        ({"train-images-idx3-ubyte.gz": np.zeros(20, np.uint8)}, r"must be pictures.*received shape \[20\]"),
        ({"train-images-idx3-ubyte.gz": greys(20, 2, 3).astype(np.int32)}, "must be uint8 .*or floats; received int32.*astype"),
        ({"train-images-idx3-ubyte.gz": np.full((20, 4), np.inf)}, r"must hold finite numbers; received inf at index \[0, 0\]"),
        (
            {"train-images-idx3-ubyte.gz": greys(1, 4), "train-labels-idx1-ubyte.gz": np.zeros(1, np.uint8)},
            "at least two pictures",
        ),
        ({"valid-labels": np.zeros(3, np.uint8)}, "must have valid-images beside valid-labels"),
    ],
)
def test_folders_of_idx_files_that_are_wrong(folder, files, message):
    for name, array in files.items():
        (folder / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=message.replace("each of its", "one for each of its")):
        load_images(folder)


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(ValueError, match="must hold pictures, such as train-images-idx3-ubyte"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="`path` must be an existing folder of IDX files, or an .npz file; received"):
        load_images(tmp_path / "absent")
    assert splits_in(tmp_path) == splits_in(tmp_path / "absent") == ()


def test_series_and_music_come_before_and_after(folder):
    (folder / "train.csv").write_text("x\n1\n")
    assert splits_of(folder) == ("train",) and load_dataset(folder).x[0].tolist() == [[1.0]]
    (folder / "train.csv").unlink()
    (folder / "train").mkdir()  # as folders of music have
    assert splits_of(folder) == SPLITS and load_dataset(folder).step == "picture"


# NPZ.


def test_npz_as_keras_has_it(npz_of):
    path = npz_of(x_train=greys(11, 4, 4), y_train=np.arange(11), x_test=greys(2, 4, 4, seed=1), y_test=np.array([3, -1]))
    assert splits_of(path) == SPLITS
    train, valid, test = (load_dataset(path, split) for split in SPLITS)
    assert [len(data) for data in (train, valid, test)] == [9, 2, 2]  # a tenth, rounded up
    np.testing.assert_array_equal(np.concatenate([train.x, valid.x])[:, 0], greys(11, 16) / np.float32(255))
    assert (valid.y.tolist(), test.y.tolist(), test.y.dtype) == ([[9], [10]], [[3], [-1]], np.int32)
    assert (train.shape, train.name, train.source) == ((4, 4), "mine", "the user's file mine.npz")


def test_npz_with_all_parts_and_a_shape(npz_of, rng):
    x = {f"x_{split}": rng.normal(size=(n, 6)).astype(dtype) for split, n, dtype in zip(SPLITS, (3, 2, 1), "fde", strict=True)}
    path = npz_of(**x, shape=np.array([3, 2]))
    for split in SPLITS:
        data = load_dataset(path, split)
        np.testing.assert_array_equal(data.x[:, 0], x[f"x_{split}"].astype(np.float32))
        assert (data.y, data.shape, data.x.dtype) == (None, (3, 2), np.float32)


def test_npz_of_one_part(npz_of):
    x = greys(30, 9) > 99
    data = load_images(npz_of(x=x, y=np.zeros(30, np.int8)))
    np.testing.assert_array_equal(data.x[:, 0], x[:27].astype(np.float32))
    assert data.shape == (3, 3) and splits_of(npz_of(x_test=x)) == ("test",)
    assert load_images(npz_of(x=x[:, :8])).shape is None


def test_which_npz_files_are_of_pictures(npz_of):
    """`x_train`, `x_valid`, `x_test` or `shape`; those of series stay what they were, also where a reader of pictures could."""
    x = np.zeros((4, 2, 2), np.float32)
    for arrays in ({"x": x}, {"x": x[0]}, {"x": x, "lengths": np.array([1, 2, 1, 1])}, {"x": x, "y": np.zeros((4, 2), int)}):
        path = npz_of(**arrays)
        assert splits_in(path) == () and splits_of(path) == ("train",)
        assert data_hash(load_dataset(path)) == data_hash(series.load_series(path))
    path = npz_of(x=x, shape=np.array([2, 2]))
    assert splits_in(path) == splits_of(path) == ("train", "valid")
    assert load_dataset(path).x.shape == (3, 1, 4)
    path.write_bytes(b"PK nothing")
    assert splits_of(path) == ("train",)  # the reader will say that it is damaged
    with pytest.raises(ValueError, match="no readable .npz file"):
        load_dataset(path)
    with pytest.raises(ValueError, match="no readable .npz file"):
        load_images(path)


PICTURES = greys(4, 2, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "must hold x and y.*received y"),
        ({"shape": np.array([1, 1])}, "must hold pictures, such as x_train, or x; found none"),
        ({"x_train": PICTURES, "x_val": PICTURES}, "received x_train, x_val. Did you mean 'x_valid'"),
        ({"x_train": PICTURES, "x": PICTURES}, "nothing beside them but shape; received"),
        ({"x_train": PICTURES, "y_test": np.zeros(4)}, "received x_train, y_test"),
        ({"x": PICTURES, "lengths": np.ones(4)}, "received x, lengths"),
        ({"x_train": np.full((4, 2), "a")}, "mine.npz.x_train must be uint8"),
        ({"x_train": np.array([None])}, "no readable .npz file of plain arrays.*allow_pickle"),
        ({"x_train": np.zeros((4, 2, 2, 3), np.uint8)}, r"must be pictures.*shape \[4, 2, 2, 3\]. Pictures in colour"),
        ({"x_train": np.zeros((0, 4), np.uint8)}, r"must be pictures.*shape \[0, 4\]"),
        ({"x_train": PICTURES.astype(int)}, "must be uint8 .*received int64"),
        ({"x_train": PICTURES * 1j}, "must be uint8 .*received complex"),
        ({"x_train": np.full((4, 2), np.nan)}, "finite numbers; received nan"),
        ({"x_train": np.full((4, 2), 1e39)}, r"finite numbers; received 1e\+39 at index \[0, 0\]"),
        ({"x_train": PICTURES, "y_train": np.zeros((4, 10), int)}, r"one for each of its 4 pictures; .*shape \[4, 10\]"),
        ({"x_train": PICTURES, "y_train": np.full(4, 2**31)}, "must lie from -1"),
        ({"x_train": PICTURES, "shape": np.array([4, 1])}, r"`shape` must be .* pictures \[2, 2\]; received \[4, 1\]"),
        ({"x_train": greys(4, 6), "shape": np.array([2, 2])}, r"`shape` must be .* pictures \[6\]; received \[2, 2\]"),
        ({"x_train": greys(4, 6), "shape": np.array([-2, -3])}, "`shape` must be two whole numbers"),
        ({"x_train": greys(4, 6), "shape": np.array(6)}, "`shape` must be two whole numbers"),
        ({"x_train": greys(4, 6), "shape": np.array([2.0, 3.0])}, "`shape` must be two whole numbers"),
    ],
)
def test_npz_files_that_are_wrong(npz_of, arrays, message):
    with pytest.raises(ValueError, match=f"mine.npz.*{message}" if not message.startswith("mine") else message):
        load_images(npz_of(**arrays))


def test_the_table_has_both():
    assert {"digits", "mnist"} <= set(DATASETS)
