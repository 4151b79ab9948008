"""Recordings: the spoken digits of FSDD, and the user's own WAV files, as frames of samples or as log-mel features."""

from __future__ import annotations

import functools
import hashlib
import re
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfseq.checks import at_least, choice
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.data.music import SUFFIXES as SCORES
from tfseq.data.music import split_of
from tfseq.data.series import check_size

RATE = 8000
"""Samples a second of the recordings."""
SUFFIX = ".wav"
FRAME = 200
"""Samples of a frame, 25 ms."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_ARCHIVE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
_FOLDER = "fsdd/recordings"
# SHA-256 of the lines "SHA-256  fsdd/recordings/NAME" of all recordings, sorted by name: what sha256sum writes
_HASH = "8f12bbbd51d141d7b73139fc9ba83cf9aaea4b7a385284e7710430761b28b673"
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav", re.IGNORECASE)
_INDICES = {"test": range(5), "valid": range(5, 10), "train": range(10, 1000)}

_HOP = 80  # 10 ms
_BANDS = 40
_FFT = 512  # bins of 16 Hz: the lowest bands have some
_FLOOR = 1e-6  # of power; a sample is at most 1


def load_digits(split: str, *, features: str = "samples", data_dir: Path | None = None) -> Sequences:
    """Spoken digits, 3,000 recordings of six speakers (Free Spoken Digit Dataset 1.0.10), 8 kHz, one digit each.

    Split: as published, recordings 0 to 4 of each speaker and digit are test; of the others 5 to 9 are valid, 10 to 49 train.
    All speakers are in all splits.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        features: `"samples"`, frames of 200 samples, a step 25 ms; or `"mel"`, what `log_mel` makes, a step 10 ms.
        data_dir: folder with `fsdd/recordings/*.wav`; they are not downloaded.

    Returns:
        Frames `[T_i, 200]` float32 in [-1, 1], zeros after the end of the last, or log-mel features `[T_i, 40]` float32; one
        label each, the digit as a `str`; and as `target` the letters of its English word `[L_i]` str.

    Raises:
        FileNotFoundError: the recordings are not in `data_dir`.
        ValueError: they are not those of version 1.0.10.
    """
    choice("split", split, SPLITS)
    choice("features", features, ("samples", "mel"))
    folder = None if data_dir is None else data_dir / _FOLDER
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            f"{_FOLDER} is not in {'`data_dir`, which is not given' if data_dir is None else data_dir}. Download {_ARCHIVE}, put "
            f"its folder recordings at DIR/{_FOLDER}, then pass --data-dir DIR (data_dir=DIR) or set TFSEQ_DATA=DIR."
        )
    files = sorted(folder.glob("*.wav"))
    _check_recordings(folder, files)
    return _digits(files, split, features, name="spoken-digits" if features == "samples" else f"spoken-digits-{features}")


def _check_recordings(folder: Path, files: Sequence[Path]) -> None:
    """Raises unless the files are the published recordings, all of them."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {_FOLDER}/{file.name}\n".encode())
    if digest.hexdigest() != _HASH:
        raise ValueError(
            f"{folder} must hold the 3,000 recordings of version 1.0.10, and no other .wav file; received {len(files)} files "
            f"whose lines of sha256sum have SHA-256 {digest.hexdigest()}, not {_HASH}. Is it another version? "
            f"Download {_ARCHIVE}."
        )


def _digits(files: Sequence[Path], split: str, features: str, name: str) -> Sequences:
    """The recordings of a split among files called DIGIT_SPEAKER_INDEX.wav."""
    x, y, names = [], [], []
    for file in files:
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise ValueError(f"{file} must be called DIGIT_SPEAKER_INDEX.wav, such as 7_jackson_32.wav.")
        if int(match[3]) not in _INDICES[split]:
            continue
        samples = read_wav(file, RATE)
        x.append(frames(samples, FRAME) if features == "samples" else log_mel(samples, RATE))
        y.append(match[1])
        names.append(file.stem)
    return Sequences(
        x,
        y=y,
        names=names,
        target=[np.array(list(WORDS[int(digit)]), np.str_) for digit in y],
        name=name,
        split=split,
        step="25 ms" if features == "samples" else "10 ms",
        sampling_rate=RATE if features == "samples" else None,
        source=f"Free Spoken Digit Dataset 1.0.10 (CC BY-SA 4.0); {_ARCHIVE}",
    )


def recordings_in(path: Path) -> tuple[str, ...]:
    """The splits of a folder of recordings; none where it has no WAV files, or scores beside them."""
    suffixes = {file.suffix.lower() for file in path.rglob("*")}
    found = _recordings(path) if SUFFIX in suffixes and not suffixes & (set(SCORES) - {".xml"}) else {}
    return tuple(split for split in SPLITS if split in found)


def load_recordings(path: str | Path, split: str = "train") -> Sequences:
    """The user's own recordings, WAV files of 16 bits and one channel, all of one sampling rate, as frames of 200 samples.

    Args:
        path: a file, which has only the split `"train"`; or a folder of them. With subfolders `train`, `valid`, `test` these are
            the splits; otherwise the split of a recording follows from the SHA-256 of its path in the folder, without suffix:
            70/15/15 in expectation. Where recordings stand in subfolders, `train/yes/1.wav`, these are their labels.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        Frames `[T_i, 200]` float32 in [-1, 1], zeros after the end of the last; a label each where there are any, a `str`. Names
        are the paths in the folder of the split, sorted.

    Raises:
        ValueError: there is no recording for the split, one cannot be read or has another rate than the first, or some have
            labels and others not.
    """
    path = Path(path)
    found = {"train": [path]} if path.is_file() else _recordings(path)
    choice("split", split, found)
    root, files = path.parent if path.is_file() else path / split if (path / split).is_dir() else path, found[split]
    labels = [file.relative_to(root).parent.as_posix() for file in files]
    if "." in labels and set(labels) != {"."}:
        apart = files[labels.index(".")].name
        raise ValueError(
            f"{root} must have all its recordings in subfolders, which are their labels, or none; {apart} is in none, others are."
        )
    rate = sampling_rate(files[0])
    return Sequences(
        [frames(read_wav(file, rate), FRAME) for file in files],
        y=None if "." in labels else labels,
        names=[file.relative_to(root).with_suffix("").as_posix() for file in files],
        name=path.resolve().stem if path.is_file() else path.resolve().name,
        split=split,
        step=f"{1000 * FRAME / rate:.4g} ms",
        sampling_rate=rate,
        source=f"{len(files)} recordings of the user's",
    )


def _recordings(folder: Path) -> dict[str, list[Path]]:
    """Split -> its WAV files, for the splits that have some."""
    own_splits = any((folder / split).is_dir() for split in SPLITS)
    found: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() == SUFFIX and file.is_file()):
        inside = file.relative_to(folder)
        split = inside.parts[0] if own_splits else split_of(inside.with_suffix("").as_posix())
        if split in SPLITS:
            found.setdefault(split, []).append(file)
    return found


def sampling_rate(path: str | Path) -> int:
    """Samples a second of a WAV file; ValueError where it is none."""
    return _opened(Path(path))[0][0]


def read_wav(path: str | Path, rate: int = RATE) -> np.ndarray:
    """A WAV file of 16 bits and one channel -> samples `[N]` float32 in [-1, 1).

    Raises:
        ValueError: it is no WAV file, is cut off, has another rate, width or number of channels, or no samples.
    """
    path = Path(path)
    found, num, content = _opened(path)
    if found != (rate, 16, 1):
        raise ValueError(
            f"{path} must have {rate} samples a second, 16 bits, 1 channel; received {found[0]}, {found[1]}, {found[2]}. "
            f"Convert it: ffmpeg -i IN -ar {rate} -ac 1 -sample_fmt s16 OUT.wav."
        )
    if num == 0:
        raise ValueError(f"{path} must have samples; it has none.")
    if len(content) != 2 * num:
        raise ValueError(f"{path} must have {num} samples, as its head says; it ends after {len(content) // 2}. Is it cut off?")
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(2**15)


def _opened(path: Path) -> tuple[tuple[int, int, int], int, bytes]:
    """Of a WAV file: samples a second, bits and channels; the number of samples of each; their bytes."""
    check_size(path, path.stat().st_size)
    try:
        with wave.open(str(path), "rb") as file:
            found = file.getframerate(), 8 * file.getsampwidth(), file.getnchannels()
            if not found[0]:
                raise wave.Error("its sampling rate is 0")
            most = path.stat().st_size // (file.getsampwidth() * file.getnchannels())  # whatever its head says
            return found, file.getnframes(), file.readframes(min(most, file.getnframes()))
    except (wave.Error, EOFError, RuntimeError) as error:  # as the parts of `wave` raise
        raise ValueError(
            f"{path} is no readable WAV file ({error or 'it ends too early'}). Is it compressed, of floats, or cut off? "
            "Convert it: ffmpeg -i IN -ac 1 -sample_fmt s16 OUT.wav."
        ) from error


def frames(samples: np.ndarray, size: int = FRAME) -> np.ndarray:
    """Samples `[N]` -> frames one after the other `[ceil(N / size), size]`, zeros after the end."""
    num = -(-len(samples) // size)
    return np.pad(samples, (0, num * size - len(samples))).reshape(num, size)


def log_mel(samples: np.ndarray, rate: int = RATE, num_bands: int = _BANDS) -> np.ndarray:
    """Samples `[N]` -> logarithms of power in mel bands `[T, num_bands]` float32, standardised within the recording.

    A step is a Hann window of 25 ms, the next 10 ms later; the recording is padded with zeros to a whole number of them. Bands
    are triangles that are equally wide in mel, 2595 log10(1 + f / 700) (O'Shaughnessy 1987), from 0 to half the rate. Each band
    has mean 0 and variance 1 over the steps of the recording.

    Args:
        samples: in [-1, 1].
        rate: samples a second.
        num_bands: number of bands.
    """
    at_least(1, num_bands=num_bands, rate=rate)
    size, hop = rate * FRAME // RATE, rate * _HOP // RATE
    fft = max(_FFT, 2 ** int(np.ceil(np.log2(size))))
    num = 1 + max(0, -(-(len(samples) - size) // hop))
    padded = np.pad(samples, (0, max(0, (num - 1) * hop + size - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:num] * np.hanning(size)
    power = np.abs(np.fft.rfft(windows, fft)) ** 2 / size  # [T, F]
    found = np.log(power @ _triangles(num_bands, fft, rate) + _FLOOR)
    return ((found - found.mean(0)) / (found.std(0) + 1e-3)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _triangles(num_bands: int, fft: int, rate: int) -> np.ndarray:
    """Weights of frequencies in bands, `[fft / 2 + 1, num_bands]`."""
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), num_bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = np.fft.rfftfreq(fft, 1 / rate)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    return np.clip(np.minimum((f - low) / (centre - low), (high - f) / (high - centre)), 0, None)
