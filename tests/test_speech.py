"""Spoken digits: WAV files, frames, log-mel features."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from tfseq.data import SPLITS, load_dataset, speech, splits_of
from tfseq.data.speech import frames, load_digits, log_mel, read_wav


def of_floats(path: Path) -> Path:
    """A WAV file of 32-bit floats, format 3, which `wave` does not read."""
    chunk = struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32)
    data = np.zeros(10, "<f4").tobytes()
    body = b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def write(path: Path, samples: np.ndarray, rate: int = 8000, width: int = 2, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setframerate(rate)
        file.setsampwidth(width)
        file.setnchannels(channels)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return path


def test_samples_and_frames(tmp_path):
    samples = read_wav(write(tmp_path / "a.wav", [0, 2**14, -(2**15), 2**15 - 1]))
    assert samples.dtype == np.float32 and samples.tolist() == [0.0, 0.5, -1.0, 1 - 2**-15]
    assert frames(samples, 3).tolist() == [[0.0, 0.5, -1.0], [1 - 2**-15, 0.0, 0.0]]
    assert frames(samples, 4).shape == (1, 4) and frames(samples, 4).dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 16000}, "8000 samples a second, 16 bits, 1 channel; received 16000, 16, 1.*ffmpeg"),
        ({"width": 1}, "received 8000, 8, 1"),
        ({"channels": 2}, "received 8000, 16, 2"),
    ],
)
def test_recordings_of_other_kinds(tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"a.wav must have .*{message}"):
        read_wav(write(tmp_path / "a.wav", np.zeros(8), **settings))


def test_recordings_that_are_damaged(tmp_path):
    path = tmp_path / "a.wav"
    for content in (b"", b"RIFF", b"ID3 nothing of the kind, but long enough"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.wav is no readable WAV file"):
            read_wav(path)
    with pytest.raises(ValueError, match="a.wav must have samples; it has none"):
        read_wav(write(path, np.zeros(0)))
    with pytest.raises(ValueError, match=r"a.wav is no readable WAV file \(unknown format: 3\).*of floats.*ffmpeg"):
        read_wav(of_floats(path))
    whole = write(path, np.arange(100)).read_bytes()
    for size in (len(whole) - 60, len(whole) - 61):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"a.wav must have 100 samples.*after {(size - 44) // 2}\. Is it cut off"):
            read_wav(path)
    path.write_bytes(whole[:40])
    with pytest.raises(ValueError, match="a.wav is no readable WAV file"):
        read_wav(path)


@pytest.mark.parametrize("num_samples", [1, 200, 201, 280, 4000])
def test_log_mel_features(num_samples, rng):
    found = log_mel(rng.normal(size=num_samples) * 0.1)
    num_steps = 1 + max(0, -(-(num_samples - 200) // 80))
    assert found.shape == (num_steps, 40) and found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    if num_steps > 2:
        np.testing.assert_allclose(found.std(0), 1, atol=0.01)  # 1 but for the floor of the deviation


def test_a_tone_is_in_its_band():
    """A tone of f Hz that begins halfway: the band around f rises most."""
    weights = speech._triangles(40, 512, 8000)
    assert (weights.sum(0) > 0).all() and weights.shape == (257, 40)
    for frequency in (300.0, 1000.0, 3000.0):
        tone = np.sin(2 * np.pi * frequency * np.arange(4000) / 8000) * (np.arange(4000) >= 2000) * 0.1
        power = np.abs(np.fft.rfft(tone[3000:3200] * np.hanning(200), 512)) ** 2 @ weights
        mel = 2595 * np.log10(1 + frequency / 700) / (2595 * np.log10(1 + 4000 / 700)) * 41 - 1  # place among the centres
        assert abs(power.argmax() - mel) <= 1
    assert np.isfinite(log_mel(np.zeros(1000))).all()  # silence


def test_digits_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "_check_recordings", lambda *_: None)
    for index in (0, 4, 5, 9, 10, 49):
        write(tmp_path / "fsdd" / "recordings" / f"7_ann_{index}.wav", np.full(300 + index, 2**14))
    for split, indices in zip(SPLITS, ((10, 49), (5, 9), (0, 4)), strict=True):
        data = load_dataset("spoken-digits", split, data_dir=tmp_path)
        assert sorted(data.names) == sorted(f"7_ann_{index}" for index in indices)
        assert data.y == ["7", "7"] and [t.tolist() for t in data.target] == [list("seven")] * 2
        assert (data.step, data.sampling_rate) == ("25 ms", 8000)
        x = data.x[data.names.index(f"7_ann_{indices[0]}")]
        assert x.shape == (2, 200) and x.dtype == np.float32 and x.sum() == 0.5 * (300 + indices[0])
        batch = data.padded()
        assert batch["target"].shape == (2, 5) and batch["y"].tolist() == ["7", "7"]
    mel = load_dataset("spoken-digits-mel", "test", data_dir=tmp_path)
    assert mel.x[0].shape[1] == 40 and mel.sampling_rate is None  # of which there is no way back to samples
    write(tmp_path / "fsdd" / "recordings" / "seven.wav", np.zeros(300))
    with pytest.raises(ValueError, match="seven.wav must be called DIGIT_SPEAKER_INDEX.wav"):
        load_dataset("spoken-digits", data_dir=tmp_path)


def test_own_recordings_in_folders_of_splits_and_labels(tmp_path):
    for split, label, num in (("train", "yes", 450), ("train", "no", 199), ("test", "no", 200)):
        write(tmp_path / split / label / f"{num}.wav", np.full(num, 2**14), rate=16000)
    write(tmp_path / "elsewhere" / "a.wav", np.zeros(3))
    assert splits_of(tmp_path) == ("train", "test")
    data = load_dataset(tmp_path)
    assert (data.name, data.split, data.step, data.sampling_rate) == (tmp_path.name, "train", "12.5 ms", 16000)
    assert list(data.names) == ["no/199", "yes/450"] and data.y == ["no", "yes"] and data.one_label
    assert [x.shape for x in data.x] == [(1, 200), (3, 200)] and [float(x.sum()) for x in data.x] == [99.5, 225.0]
    assert load_dataset(tmp_path, "test").y == ["no"]
    with pytest.raises(ValueError, match="which are: train, test; received 'valid'"):
        load_dataset(tmp_path, "valid")
    write(tmp_path / "train" / "apart.wav", np.zeros(3), rate=16000)
    with pytest.raises(ValueError, match="in subfolders, which are their labels, or none; apart.wav is in none"):
        load_dataset(tmp_path)


def test_own_recordings_in_a_plain_folder_or_a_file(tmp_path):
    for i in range(30):
        write(tmp_path / f"{i}.wav", np.zeros(5 + i))
    assert splits_of(tmp_path) == SPLITS
    parts = [load_dataset(tmp_path, split) for split in SPLITS]
    assert sorted(name for part in parts for name in part.names) == sorted(map(str, range(30)))
    assert all(part.y is None and part.step == "25 ms" for part in parts)
    data = load_dataset(tmp_path / "7.wav")
    assert (data.names, data.name, data.split, data.sampling_rate, data.lengths.tolist()) == (["7"], "7", "train", 8000, [1])
    write(tmp_path / "tune.mid", np.zeros(1))  # a folder of scores remains one, whatever was made of them
    assert speech.recordings_in(tmp_path) == ()


def test_own_recordings_have_one_rate(tmp_path):
    write(tmp_path / "train" / "a.wav", np.zeros(8))
    write(tmp_path / "train" / "b.wav", np.zeros(8), rate=44100)
    with pytest.raises(ValueError, match="b.wav must have 8000 samples a second.*received 44100, 16, 1"):
        load_dataset(tmp_path)
    (tmp_path / "train" / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="a.wav is no readable WAV file"):
        load_dataset(tmp_path)


def test_recordings_that_are_not_there_or_not_the_published_ones(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(
            FileNotFoundError, match="fsdd/recordings is not in.*Download https://github.com/Jakobovski.*--data-dir"
        ):
            load_digits("train", data_dir=folder)
    write(tmp_path / "fsdd" / "recordings" / "0_ann_0.wav", np.zeros(300))
    with pytest.raises(ValueError, match="must hold the 3,000 recordings of version 1.0.10.*received 1 files"):
        load_digits("train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="`features` must be one of"):
        load_digits("train", features="mfcc", data_dir=tmp_path)


def test_the_published_recordings(data_folder):
    # 25 ms and 10 ms steps of the recordings; 6 speakers x 10 digits x 5
    data = load_dataset("spoken-digits", "test", data_dir=data_folder)
    assert (len(data), int(data.lengths.sum())) == (300, 5323)
    assert sorted(set(data.y)) == list("0123456789") and max(np.abs(x).max() for x in data.x) <= 1.0
    mel = load_dataset("spoken-digits-mel", "valid", data_dir=data_folder)
    assert (len(mel), int(mel.lengths.sum()), mel.x[0].shape[1]) == (300, 12_904, 40)
    assert not set(mel.names) & set(data.names)
