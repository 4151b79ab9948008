"""Files: written whole or not at all, downloaded once and checked, kept in the user's cache folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_dir() -> Path:
    """Where downloads and built data sets are kept: `TFSEQ_CACHE`, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("TFSEQ_CACHE") or pooch.os_cache("tfseq"))


def fetch_file(file: str, url: str, sha256: str, data_dir: Path | None = None) -> Path:
    """The path of a checked copy of `file`: from `data_dir` where it is there, else downloaded into the cache folder.

    Args:
        file: path inside `data_dir` and inside the cache folder, `/` between its parts.
        url: where to download it.
        sha256: hex digest of its content; checked wherever the file came from.
        data_dir: folder of already downloaded files.

    Returns:
        The path of the file.

    Raises:
        ValueError: the content has another digest.
        FileNotFoundError: no file in `data_dir`, and the download failed.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise FileNotFoundError(
                f"`data_dir` must be an existing folder; received {str(data_dir)!r}. Check --data-dir or TFSEQ_DATA."
            )
        path = data_dir / file
        if path.exists():
            check_sha256(path, sha256)
            return path
    import pooch

    folder = (cache_dir() / file).parent
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=Path(file).name, path=folder, progressbar=sys.stderr.isatty()))
    except OSError as error:
        looked = "" if data_dir is None else f" is not in {data_dir} and"
        raise FileNotFoundError(
            f"{file}{looked} could not be downloaded from {url} into {folder} ({type(error).__name__}: {error}). Download it on "
            f"a machine with access and put it at DIR/{file}, then pass --data-dir DIR (data_dir=DIR) or set TFSEQ_DATA=DIR."
        ) from error


def check_sha256(path: Path, sha256: str) -> None:
    """Raises ValueError unless the content of `path` has the SHA-256 `sha256` (hex)."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} must have SHA-256 {sha256}; found {found} in {path.stat().st_size} bytes. "
            "The file is damaged, incomplete or another version: delete it and download it again."
        )


@contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """Holds the lock of a file or folder, as long as the process lives; yields whether it was free, None where there are none."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        free: bool | None = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:  # a file system without
            free = None
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """A new file beside `path` to write into; it takes the place of `path` only when the block ends without an error.

    It is on the disk before it does, so that a machine that stops leaves one of the two, whole. The temporary name keeps the
    suffix, which tells most writers the format. Missing folders are made.

    Raises:
        OSError: the file cannot be written; an older `path` is left as it was. That of another file, or of a download, stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        is_other = isinstance(error.filename, str) and Path(error.filename) not in (path, temporary, *path.parents)
        if is_other or (isinstance(error, FileNotFoundError) and error.errno is None):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} could not be written ({reason}); what was there before is as it was") from error
    finally:
        with suppress(OSError):  # where the parent is no folder, there is nothing to remove
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; some file systems say only now that it is full."""
    if sys.platform == "win32":  # which opens no folders, and flushes no file that is open to be read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems cannot, of names
            raise
    finally:
        os.close(descriptor)


def remove_left_behind(path: Path) -> None:
    """Removes the temporary files of `replace_file(path)` whose processes were killed; nobody may be writing it now."""
    pattern = re.compile(rf"\.{re.escape(path.stem)}-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for file in path.parent.glob(".*") if path.parent.is_dir() else ():
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)
