"""Every reader of files from outside, small files that each accepts, and what a reader may do with any bytes.

What `test_fuzz.py` shows with files that once were read wrongly, `scripts/fuzz.py parsers` looks for with a fuzzer.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import re
import struct
import tempfile
import tracemalloc
import wave
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOST_MEMORY = 2**26
"""Bytes that a reader may hold at one time for a file of some kB."""
_MEMBER = b"\n--member--\n"  # between the arrays of an NPZ file, which is packed after its bytes were varied


class Parser(NamedTuple):
    """A reader of files.

    Attributes:
        file: what the file is called.
        read: reads it.
        examples: contents that it accepts.
        place: what an error says beside the file: the line, or that there is none.
        pack: what is done to the bytes that vary before they are a file.
    """

    file: str
    read: Callable[[Path], Any]
    examples: tuple[bytes, ...]
    place: str = ""
    pack: Callable[[bytes], bytes] = bytes


def check(parser: Parser, content: bytes, folder: Path) -> bool:
    """Whether the reader accepts a file; AssertionError where it neither makes data of it nor says what is wrong and where."""
    path = folder / parser.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parser.pack(content))
    found, most = _read(parser, path)
    if most >= MOST_MEMORY:  # which modules may have taken that were imported
        found, most = _read(parser, path)
    assert most < MOST_MEMORY, f"a file of {path.stat().st_size} bytes took {most}"
    if not isinstance(found, Exception):
        _check_data(found)
        return True
    message = str(found)
    assert str(folder) in message, f"the error does not name the file: {type(found).__name__}: {message}"
    assert re.search(parser.place, message), f"the error does not name the place: {message}"
    assert len(message) < 2000, f"an error of {len(message)} characters"
    return False


def _read(parser: Parser, path: Path) -> tuple[Any, int]:
    """What is read, or the error that says why not; and the bytes of memory that it took at most."""
    tracemalloc.start()
    try:
        found = parser.read(path)
    except (ValueError, FileNotFoundError) as error:
        found = error
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, most


def _check_data(found: Any) -> None:
    """AssertionError unless these are data that a model can be given."""
    from tfseq.data.batching import Sequences

    if not isinstance(found, Sequences):
        for array in found if isinstance(found, tuple) else (found,):
            assert not isinstance(array, np.ndarray) or array.dtype.kind not in "fc" or np.isfinite(array).all()
        return
    assert len(found)
    for text in _texts(found):
        assert text.encode()  # not empty, and no half of a surrogate pair
    assert all(isinstance(name, str) for name in found.names) and len(found.names) in (0, len(found))
    if found.is_text or (found.target is not None and isinstance(found.target[0], str)):
        return
    batch = found.padded()
    assert batch["x"].shape[:2] == batch["mask"].shape
    assert batch["x"].dtype.kind in "iuU" or np.isfinite(batch["x"]).all()


def _texts(found: Any) -> Iterable[str]:
    for items in (found.x, found.y, found.target):
        for item in () if items is None else items:
            if isinstance(item, str):
                yield item
            elif isinstance(item, np.ndarray) and item.dtype.kind == "U":
                yield from (text for text in item.tolist() if text or items is not found.y)  # a label may be "", not known


def _loader(target: str, **options: Any) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        module, function = target.split(":")
        return getattr(importlib.import_module(f"tfseq.data.{module}"), function)(path, **options)

    return read


def _of_folder(target: str, levels: int = 1, **options: Any) -> Callable[[Path], Any]:
    """A reader that is given the folder `levels` above the file."""
    read = _loader(target, **options)
    return lambda path: read(path.parents[levels - 1])


def _vectors(path: Path) -> Any:
    from tfseq.data.vectors import read_vectors

    return read_vectors(path, ["of", "the", "Rome", "a b"])


def _config(path: Path) -> Any:
    from tfseq.cli import read_config

    return None if read_config(path) is None else ()


def _request(path: Path) -> Any:
    """The inputs of a request for each of two signatures; its refusals are no ValueErrors."""
    import tensorflow as tf

    from tfseq.serve import convert
    from tfseq.serve.errors import ServingError
    from tfseq.serve.signatures import Signature, TensorInfo

    def info(name: str, dtype: Any, *shape: int | None) -> TensorInfo:
        return TensorInfo(name, dtype, shape)

    one = Signature("text", "", {"text": info("text", tf.string, None)}, {})
    numbers = (("x", tf.float32, (None, None, 2)), ("lengths", tf.int32, (None,)), ("observed", tf.bool, (None, None, 2)))
    several = Signature("many", "", {name: info(name, dtype, *shape) for name, dtype, shape in numbers}, {})
    refused: list[ServingError] = []
    for signature in (one, several):
        try:
            document = convert.parse(path.read_bytes())
            convert.signature_name(document)
            found, rows = convert.from_json(document, signature)
            signature.check(found)
            convert.to_json(found, rows)
        except ServingError as error:
            refused.append(error)
            continue
        wanted = {name: info.dtype.as_numpy_dtype for name, info in signature.inputs.items()}
        assert {name: array.dtype for name, array in found.items()} == wanted
    if len(refused) == 2:
        raise ValueError(f"{path}: {refused[0]}") from refused[0]
    return ()


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def _members(**arrays: Any) -> bytes:
    return _MEMBER.join(part for name, array in arrays.items() for part in (name.encode(), _npy(array)))


def _zipped(content: bytes) -> bytes:
    """A whole NPZ file, whose members are what varies."""
    file = io.BytesIO()
    parts = content.split(_MEMBER)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in dict(zip(parts[::2], parts[1::2], strict=False)).items():
            archive.writestr(zipfile.ZipInfo(name.decode("latin-1")[:50].replace("\0", "") + ".npy"), data)
    return file.getvalue()


def _idx(kind: int, sizes: Iterable[int], content: bytes) -> bytes:
    sizes = tuple(sizes)
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


def _wav(samples: Iterable[int], rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.array(list(samples), "<i2").tobytes())
    return file.getvalue()


def _midi() -> bytes:
    events = bytes.fromhex("00903c40 00904040 60803c00 00804000 0090 4340 3080 4300 00ff2f00".replace(" ", ""))
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 96) + b"MTrk" + struct.pack(">I", len(events)) + events


_SCORE = b"""<?xml version="1.0"?><score-partwise version="3.1"><part-list><score-part id="P1"><part-name>A</part-name>
</score-part></part-list><part id="P1">
<measure number="1"><attributes><divisions>1</divisions></attributes><note><pitch><step>C</step>
<octave>4</octave></pitch><duration>2</duration></note></measure></part></score-partwise>"""
_LINE = r"line \d+|it is empty|it has none"
_SERIES = "series:load_series"
_SPANS = [{"text": "in Rome", "entities": [{"span": [3, 7], "type": "LOC", "name": "Rome"}]}, {"text": "no", "entities": []}]
_PIXELS = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
_ROWS = np.array([[0.5, 1.0], [np.nan, 2.0]], np.float32)

PARSERS: dict[str, Parser] = {
    "conll": Parser(
        "a.conll",
        _loader("conll:load_conll"),
        (b"we\tO\nin\tO\nRome\tB-LOC\n\n-DOCSTART-\nno\tO\n", b"a x NN S-A\nb y NN O\n", b"a I-A\nb B-A\n\nb I-A\n"),
        _LINE,
    ),
    "conll-repair": Parser(
        "a.iob", _loader("conll:load_conll", illegal="repair"), (b"a B-A\nb I-B\nc I-B\n", b"a E-A\nb S-A\nc I-A\n"), _LINE
    ),
    "conllu": Parser(
        "a.conllu",
        _loader("conll:load_conll"),
        (
            b"# sent_id = 1\n1\tWe\twe\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n2\trun\trun\tVERB\t_\t_\t0\troot\t_\t_\n\n",
            b"1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_\n1\tde\t_\tADP\t_\t_\t_\t_\t_\t_\n8.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n",
        ),
        _LINE,
    ),
    "spans": Parser(
        "a.json", _loader("conll:load_conll"), (json.dumps(_SPANS).encode(),), r"line \d+|item \d+|empty|must be a|readable JSON"
    ),
    "csv": Parser(
        "a.csv",
        _loader(_SERIES),
        (
            b"sequence,date,a,b,u_c,y\nA,2001-01-01,1,2.5,0,1\nA,2001-01-02,NA,-1e3,1,\nB,2001-01-01,0,0,0,-1\n",
            b"year;symbol\n1999;3\n2000;0\n",
            b'time\t"a b"\n0:00:01\t1\n0:00:02\t\n',
        ),
        _LINE + "|header line|readable CSV|UTF-8",
    ),
    "npz": Parser(
        "a.npz",
        _loader(_SERIES),
        (
            _members(x=_ROWS, observed=np.ones((2, 2), bool), u=_ROWS[:1].repeat(2, 0), y=np.array([0, -1])),
            _members(x=np.array([[1, 2, 0]]), lengths=np.array([2])),
            _members(x=np.zeros((2, 3, 1), np.float16), lengths=np.array([3, 0], np.uint8), y=np.zeros((2, 3), np.int8)),
        ),
        pack=_zipped,
    ),
    "npz-zip": Parser("a.npz", _loader(_SERIES), (_zipped(_members(x=_ROWS)),)),
    "npz-images": Parser(
        "a.npz",
        _loader("images:load_images"),
        (_members(x_train=_PIXELS, y_train=np.array([0, 1]), shape=np.array([2, 2])), _members(x=_PIXELS / 2.0)),
        pack=_zipped,
    ),
    "idx": Parser(
        "pictures/train-images-idx3-ubyte",
        _of_folder("images:load_images"),
        (
            _idx(8, (2, 2, 2), _PIXELS.tobytes()),
            _idx(13, (2, 3), np.ones((2, 3), ">f4").tobytes()),
            gzip.compress(_idx(8, (2, 2, 2), _PIXELS.tobytes()), mtime=0),
        ),
    ),
    "idx-labels": Parser(
        "labels-idx1",
        _loader("images:read_idx"),
        (
            _idx(8, (3,), b"\1\2\3"),
            _idx(12, (2,), b"\0\0\0\1\xff\xff\xff\xff"),
            gzip.compress(_idx(9, (1, 1, 1), b"\1"), mtime=0),
        ),
    ),
    "wav": Parser("sound.wav", _loader("speech:load_recordings"), (_wav(range(250)), _wav((1,), 16000))),
    "wav-folder": Parser(
        "sounds/train/yes/1.wav", _of_folder("speech:load_recordings", 3), (_wav(range(250)), _wav((1,), 16000))
    ),
    "midi": Parser("pieces/train/a.mid", _of_folder("music:load_folder", 2), (_midi(),)),
    "musicxml": Parser("pieces/train/a.musicxml", _of_folder("music:load_folder", 2), (_SCORE,)),
    "humdrum": Parser(
        "pieces/train/a.krn",
        _of_folder("music:load_folder", 2),
        (b"**kern\t**kern\n*M4/4\t*M4/4\n=1\t=1\n4c\t4e\n4d\t2g\n*-\t*-\n",),
    ),
    "vectors": Parser(
        "a.vec", _vectors, (b"2 3\nof 1 2 3\nthe -1 .5 1e3\n", b"of 1 2\nROME 3 4\na b 5 6\n", b"of\t1\t2\n"), _LINE
    ),
    "table": Parser(
        "a.tsv",
        _loader("text:load_table"),
        (b"text\tlabel\na film\tpos\n\nno\tneg\n", b"target\tsource\nein Haus\ta house\n"),
        _LINE,
    ),
    "text": Parser(
        "a.txt", _loader("text:load_text"), (b"A text of more than twenty characters.\r\nAnd a line.\n",), "line|90/5/5|empty"
    ),
    "fasta": Parser("a.fasta", _loader("dna:load_fasta"), (b">g1 exon\nACGT\nac-*\n>g2 intron\nTT\n", b">g1\nAC\n"), _LINE),
    "config": Parser("a.yaml", _config, (b"model: dmm\ndata: chorales\nmodel:\n  latent_dim: 3\n  units: [1, 2]\n",)),
    "request": Parser(
        "a.json",
        _request,
        (
            b'{"instances": ["a", {"b64": "YQ=="}], "signature_name": "text"}',
            b'{"inputs": {"x": [[[1, 2.5], [NaN, 1e30]]], "lengths": [2], "observed": [[[true, false], [true, true]]]}}',
            b'{"instances": [{"x": [[1, 2]], "lengths": 1, "observed": [[true, true]]}]}',
        ),
    ),
}


def checked(name: str, content: bytes) -> bool:
    """`check` in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return check(PARSERS[name], content, Path(folder))
