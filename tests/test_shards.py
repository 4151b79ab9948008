"""Shards: batches and windows hold what the data set holds, in an order that (seed, epoch) decides; damage is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq import cli
from tfseq.data import data_hash, shards
from tfseq.data.batching import Sequences, num_windows, stream, windows
from tfseq.data.shards import Shards, long_texts, write_shards
from tfseq.files import locked

NUM_SHARDS = 5


@pytest.fixture(scope="module")
def frames() -> Sequences:
    """All entries that hold numbers; some sequences are empty."""
    rng = np.random.default_rng(0)
    lengths = [0, *rng.integers(0, 60, 399)]
    return Sequences(
        [rng.normal(size=(t, 3)).astype(np.float32) for t in lengths],
        observed=[rng.random((t, 3)) < 0.8 for t in lengths],
        u=[rng.normal(size=(t, 2)) for t in lengths],
        y=[rng.integers(-1, 4, t).astype(np.int32) for t in lengths],
        target=[rng.integers(0, 9, t % 4).astype(np.int32) for t in lengths],
        name="frames",
        step="s",
        columns=("a", "b", "c"),
    )


@pytest.fixture(scope="module")
def written(frames, tmp_path_factory) -> Shards:
    """The frames as shards, in two blocks; read in groups of some dozens."""
    blocks = (frames.take(part) for part in (range(150), range(150, 400)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_GROUP_BYTES", 1 << 16)
        yield write_shards(blocks, tmp_path_factory.mktemp("frames"), split="train", num_shards=NUM_SHARDS)


@pytest.fixture(scope="module")
def texts() -> Sequences:
    """Sentences of tokens, one of which stands in the last sentence only."""
    rng = np.random.default_rng(1)
    words = np.array(["the", "cat", "sät", "on", "it"])
    x = [rng.choice(words, t, p=[0.4, 0.3, 0.2, 0.07, 0.03]) for t in [0, *rng.integers(1, 20, 58)]]
    return Sequences([*x, np.array(["zebra", "on"])], name="texts")


@pytest.fixture(scope="module")
def written_texts(texts, tmp_path_factory) -> Shards:
    return write_shards(texts, tmp_path_factory.mktemp("texts"), split="train", num_shards=NUM_SHARDS, unit="words")


def batches_of(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize("batch_steps", [None, 300])
def test_an_epoch_has_each_sequence_once_whole_and_with_little_padding(frames, written, batch_steps):
    num = written.num_batches(16, batch_steps=batch_steps)
    found = batches_of(written.stream(16, seed=3, batch_steps=batch_steps), 2 * num)
    for epoch in (found[:num], found[num:]):
        assert sorted(row for batch in epoch for row in batch["row"]) == list(range(400))
        assert sum(batch["mask"].sum() for batch in epoch) / sum(batch["mask"].size for batch in epoch) > 0.9
    assert_same(found[:num:5], [{**frames.take(batch["row"]).padded(), "row": batch["row"]} for batch in found[:num:5]])
    assert any(a["row"].tolist() != b["row"].tolist() for a, b in zip(found[:num], found[num:], strict=True))
    if batch_steps is None:
        assert num == 25
    else:
        assert max(batch["mask"].size for batch in found) <= batch_steps
    assert_same(batches_of(written.stream(16, seed=3, first_epoch=1, skip=7, batch_steps=batch_steps), num - 7), found[num + 7 :])


def test_one_pass_without_a_seed(written):
    found = list(stream(written, 16).as_numpy_iterator())
    assert len(found) == 25
    assert sorted(row for batch in found for row in batch["row"]) == list(range(400))


def test_what_is_read_is_what_was_written(frames, written, texts, written_texts, tmp_path):
    assert data_hash(written.read()) == data_hash(frames)
    assert written.read().columns == ["a", "b", "c"]
    assert data_hash(written_texts.read()) == data_hash(texts)
    labelled = Sequences(texts.x[1:4], y=["pos", "neg", "pos"], target=[np.array(["é"]), np.array(["b", "c"]), np.array([], str)])
    found = write_shards(labelled, tmp_path, num_shards=2)
    assert data_hash(found.read()) == data_hash(labelled)
    assert data_hash(found) != data_hash(written_texts)
    assert found.read().y == ["pos", "neg", "pos"]


@pytest.mark.parametrize(("batch_size", "num_steps", "seed"), [(4, 10, None), (7, 33, 2), (1, 1000, 2)])
def test_windows_are_those_of_the_data_in_the_order_of_the_shards(texts, written_texts, batch_size, num_steps, seed):
    order = np.arange(NUM_SHARDS) if seed is None else np.random.default_rng([seed, 0]).permutation(NUM_SHARDS)
    ordered = texts.take(row for shard in order for row in range(shard, len(texts), NUM_SHARDS))
    num = num_windows(written_texts, batch_size, num_steps)
    assert num == num_windows(texts, batch_size, num_steps)
    wanted = batches_of(windows(ordered, batch_size, num_steps), num)
    assert_same(batches_of(windows(written_texts, batch_size, num_steps, seed=seed), num), wanted)
    if num > 3:
        assert_same(batches_of(windows(written_texts, batch_size, num_steps, seed=seed, skip=3), num - 3), wanted[3:])


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_the_end_of_rows_of_ids_is_as_in_memory(tmp_path, dtype):
    ids = Sequences([np.arange(n, n + 3, dtype=dtype)[:n] for n in (3, 1, 2)], name="ids")

    def prepare(data):
        return Sequences([np.append(x, np.int32(256)) for x in data.x])  # more than a byte holds, as `models.reader` writes it

    found = write_shards(ids, tmp_path, num_shards=1).prepared(prepare)
    for read in (lambda data: stream(data, 2), lambda data: windows(data, 1, 4)):
        assert_same(list(read(found).as_numpy_iterator()), list(read(prepare(ids)).as_numpy_iterator()))


def test_a_sample_knows_what_stands_elsewhere(texts, monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "_SAMPLE_BYTES", 500)
    sample = write_shards(texts, tmp_path / "texts", num_shards=2).sample()
    counts = Counter(token for x in texts.x for token in x.tolist())
    seen = Counter(token for x in sample.x for token in x.tolist())
    assert {token: min(count, 10) for token, count in seen.items()} == {token: min(n, 10) for token, n in counts.items()}
    assert sum(seen.values()) < sum(counts.values()) / 2
    rng = np.random.default_rng(0)
    symbols = Sequences(rng.integers(0, 4, (300, 20)).astype(np.int32), y=["rare" if i == 200 else "usual" for i in range(300)])
    symbols.x[250, 3] = 17
    sample = write_shards(symbols, tmp_path / "symbols", num_shards=2).sample()
    assert len(sample) < 30 and max(x.max() for x in sample.x) == 17 and set(sample.y) == {"usual", "rare"}


def test_a_sample_is_of_all_sequences_alike(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "_SAMPLE_BYTES", 10_000)
    data = Sequences(np.arange(2000, dtype=np.float32).reshape(-1, 1, 1))
    rows = np.array(write_shards(data, tmp_path, num_shards=1).sample().x).ravel()
    assert 100 < len(rows) < 600
    assert abs(rows.mean() - 999.5) < 4 * 2000 / np.sqrt(12 * len(rows))  # four standard errors of a uniform sample


def copied(written: Shards, folder: Path) -> Path:
    for path in written.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_a_damaged_shard_is_named_where_it_is_read(written_texts, tmp_path):
    folder = copied(written_texts, tmp_path)
    flip(folder / "train-00002-of-00005.tfrecord")
    model = tfseq.LanguageModel.tiny(vocabulary=["the"], unit="words", dropout=0.0, window=20)
    damaged = Shards(folder)
    with pytest.raises(ValueError, match=r"train-00002-of-00005.tfrecord: record \d+ cannot be read"):
        damaged.read()
    with pytest.raises(ValueError, match=r"train-00002-of-00005.tfrecord: record \d+ cannot be read"):
        tfseq.train(model, written_texts, damaged, epochs=1, batch_size=3, progress=False)
    with pytest.raises(ValueError, match=r"train-00002-of-00005.tfrecord: SHA-256"):
        damaged.check()
    written_texts.check()


@pytest.mark.parametrize("name", ["train-00003-of-00005.tfrecord", "train-lengths.npy"])
def test_a_missing_or_truncated_file_is_named_at_once(written_texts, tmp_path, name):
    file = copied(written_texts, tmp_path) / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name}: it has"):
        Shards(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{name}: it is missing"):
        Shards(tmp_path)


def test_damage_beside_the_shards_is_named(written_texts, tmp_path):
    folder = copied(written_texts, tmp_path)
    flip(folder / "train-lengths.npy")
    with pytest.raises(ValueError, match=r"train-lengths.npy: SHA-256"):
        Shards(folder).lengths.sum()
    manifest = folder / "train.manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(ValueError, match=r"train.manifest.json is damaged, or of another version"):
        Shards(folder)


def test_interrupted_writing_leaves_nothing_that_looks_whole(frames, tmp_path):
    def blocks():
        yield frames.take(range(20))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(blocks(), tmp_path, split="train", num_shards=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "train-00000-of-00009.tfrecord").write_bytes(b"another's")
    with pytest.raises(ValueError, match="train-00000-of-00009.tfrecord is there, and not left by an interrupted write"):
        write_shards(frames.take(range(20)), tmp_path, split="train", num_shards=2)
    (tmp_path / "valid-tokens.json").write_text("the user's own")
    with pytest.raises(ValueError, match="valid-tokens.json is there, and not left by an interrupted write"):
        write_shards(frames.take(range(20)), tmp_path, split="valid", num_shards=2)
    assert (tmp_path / "valid-tokens.json").read_text() == "the user's own"
    (tmp_path / ".train-is-being-written").touch()  # as a process that could not tidy up leaves it
    with locked(tmp_path / ".train-is-being-written") as free:  # or is one that goes on
        if free:
            with pytest.raises(ValueError, match="another writes split 'train'"):
                write_shards(frames.take(range(20)), tmp_path, split="train", num_shards=2)
    assert (tmp_path / "train-00000-of-00009.tfrecord").read_bytes() == b"another's"
    with pytest.raises(FileNotFoundError, match="splits there: none"):
        Shards(tmp_path)
    write_shards(frames.take(range(20)), tmp_path, split="train", num_shards=2).check()
    assert not (tmp_path / "train-00000-of-00009.tfrecord").exists()
    assert not (tmp_path / ".train-is-being-written").exists()
    with pytest.raises(ValueError, match="must be without split 'train'"):
        write_shards(frames, tmp_path, split="train")


def test_a_full_disk_leaves_nothing(frames, tmp_path, monkeypatch):
    def write(self, record):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io.TFRecordWriter, "write", write)
    with pytest.raises(OSError, match="could not be written, and nothing is left of it .No space left"):
        write_shards(frames, tmp_path, num_shards=2)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said(frames, tmp_path):
    x = np.zeros((3, 2, 2), np.float32)
    nan = x.copy()
    nan[1, 0, 0] = np.nan
    cases = [
        (Sequences(["raw text"]), "raw texts"),
        (Sequences([]), "no sequences"),
        (Sequences(nan), r"`data.x` must be finite wherever .*received nan at index \(1, 0, 0\). For missing"),
        (Sequences(x + np.float32(3.4e38)), r"`data.x` must be .*no larger than 1e\+30; received 3.39.* at index \(0, 0, 0\)"),
        (Sequences(x, u=nan), r"`data.u` must be finite, .*received nan at index \(1, 0, 0\). Leave"),
        ([Sequences(x), frames], "same entries"),
        ([Sequences(x), Sequences(x[:, :, :1])], r"float32 \['T', 2\] as in the first; received float32 of shape \[2, 1\]"),
        ([Sequences(x.astype(np.int32)), Sequences(x)], "alike in all sequences"),
        (Sequences(x.astype(complex)), "must be str or one of"),
    ]
    for data, message in cases:
        with pytest.raises(ValueError, match=message):
            write_shards(data, tmp_path)
        assert list(tmp_path.iterdir()) == []
    write_shards(Sequences(nan, observed=~np.isnan(nan)), tmp_path)


def test_what_cannot_be_streamed_is_said(written, written_texts, monkeypatch):
    with pytest.raises(ValueError, match="`augmented_epochs` must be 0"):
        written.stream(4, seed=0, augmented_epochs=1)
    with pytest.raises(ValueError, match="`skip` must leave"):
        written.stream(16, seed=0, skip=25)
    with pytest.raises(ValueError, match="symbols or tokens"):
        written.windows(4, 10)
    with pytest.raises(ValueError, match="cut into tokens as the model cuts them"):
        written_texts.prepared(lambda data: Sequences([x[::-1] for x in data.x]))
    monkeypatch.setattr(shards, "_MOST_READ", 10)
    with pytest.raises(ValueError, match="must fit into memory"):
        written.read()


def test_training_on_shards_resumes_and_scores_as_in_memory(texts, written_texts, same_when_resumed):
    def run(epochs, folder, **settings):
        keras.utils.set_random_seed(0)
        model = tfseq.LanguageModel.from_data(
            written_texts.sample(), unit="words", embedding_dim=3, units=[4], dropout=0.0, window=30
        )
        settings |= {"schedule": "constant", "batch_size": 3, "progress": False, "checkpoint_minutes": 0.0}
        settings["steps_per_epoch"] = 5  # so that a run is resumed within a pass
        return tfseq.train(model, written_texts, out=folder, epochs=epochs, **settings)

    done = same_when_resumed(run)
    model = done.model
    assert np.isfinite([row["loss"] for row in done.history]).all()
    assert set(model.text.vocabulary) == {"</s>", *(token for x in texts.x for token in x.tolist())} and model.ends
    one, other = written_texts.prepared(model.prepare), model.prepare(texts)
    assert one.lengths.tolist() == other.lengths.tolist()
    found = [model.evaluate(stream(data, 8), verbose=0, return_dict=True)["nats_per_step"] for data in (one, other)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)  # two orders of summation in float32
    figures = tfseq.evaluate(model, written_texts)
    np.testing.assert_allclose(figures["nats_per_token"], found[1], rtol=1e-5)


def test_the_command_line_writes_checks_and_knows_the_unit(tmp_path, capsys):
    lines = [f"line {i}, ä{'.' * (i % 7)}\n" for i in range(4000)]
    file = tmp_path / "book.txt"
    file.write_text("".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    assert cli.main(["data", "shard", "--data", str(file), "--out", str(out), "--num-shards", "2"]) == 0
    assert "train: " in capsys.readouterr().out
    found = [Shards(out, split) for split in ("train", "valid", "test")]
    assert "".join("".join(x) for part in found for x in part.read().x) == "".join(lines)
    assert [part.unit for part in found] == ["characters"] * 3 and found[0].pieces
    assert abs(found[0].lengths.sum() / len("".join(lines)) - 0.9) < 0.01
    assert cli.main(["data", "check", "--data", str(out)]) == 0
    assert cli.main(["train", "lm", "--data", str(out), "--model.unit", "words", "--out", str(tmp_path / "run")]) == 1
    assert "--model.unit must be characters" in capsys.readouterr().err
    assert cli.main(["data", "shard", "--data", str(file), "--out", str(out)]) == 1
    assert "already" in capsys.readouterr().err


def test_long_texts_come_in_blocks_that_do_not_cut_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_TEXT_BYTES", 10)
    (tmp_path / "train.txt").write_text("ß" * 50 + "\nab\n" * 9, encoding="utf-8")
    blocks = [block.x[0] for block in long_texts(tmp_path, "train")]
    assert "".join(blocks) == "ß" * 50 + "\nab\n" * 9
    assert len(blocks) > 3
    assert long_texts(tmp_path, "valid") is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(b"\xff", "text must be UTF-8; byte {} of the line, 0xff"), (b"\0", "text must hold no NUL")],
)  # fmt: skip
@pytest.mark.parametrize("block_bytes", [50, 1 << 22])
def test_what_is_wrong_in_a_later_block_is_named_with_its_line(tmp_path, monkeypatch, wrong, message, block_bytes):
    monkeypatch.setattr(shards, "_TEXT_BYTES", block_bytes)
    file = tmp_path / "book.txt"
    lines = [b"a line\r\n"] * 1000
    lines[989] = b"ab" + wrong + b"cd\r\n"
    file.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=f"book.txt, line 990: {message.format(3)}"):
        list(long_texts(file, "test"))
    list(long_texts(file, "train"))
    monkeypatch.setattr(shards, "_LINE_BYTES", 7)  # a block begins within the line
    file.write_bytes(b"a line\n" * 2 + b"0123456789" * 20 + wrong + b"\n")
    with pytest.raises(ValueError, match=f"book.txt, line 3: {message.format(201)}"):
        list(long_texts(file, "test"))


@pytest.mark.parametrize(
    "text", ["a" * 9 + "\n" + "b" * 9 + "\n", "0123456789\n" * 10, "a\nbb\n" * 50 + "c", "ß" * 40000 + "\nä" * 9000]
)
def test_every_line_of_a_text_is_in_one_split(tmp_path, text):
    file = tmp_path / "book.txt"
    file.write_text(text, encoding="utf-8")
    parts = ["".join(block.x[0] for block in long_texts(file, split)) for split in ("train", "valid", "test")]
    assert "".join(parts) == text
    assert abs(len(parts[0].encode()) / file.stat().st_size - 0.9) < 0.5 and all(
        part.isprintable() or "\n" in part for part in parts
    )


def test_a_text_of_too_few_lines_is_a_clear_error_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("one line")
    assert cli.main(["data", "shard", "--data", str(tmp_path / "book.txt"), "--out", str(tmp_path / "out")]) == 1
    assert "must have lines for each of train, valid and test" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
