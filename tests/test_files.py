"""Files: nothing is half written, and what was downloaded is what was expected."""

import hashlib

import pytest

from tfseq.files import cache_dir, check_sha256, fetch_file, replace_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180-2
URL = "https://example.invalid/a.txt"


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFSEQ_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("TFSEQ_CACHE")
    assert cache_dir().name == "tfseq"


def test_fetch_file_takes_the_checked_copy(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert fetch_file("a.txt", URL, ABC, tmp_path) == tmp_path / "a.txt"


def test_fetch_file_takes_what_it_downloaded_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TFSEQ_CACHE", str(tmp_path))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_bytes(b"abc")
    assert fetch_file("set/a.txt", URL, ABC) == tmp_path / "set" / "a.txt"


def test_check_sha256_names_both_digests_and_the_size(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    check_sha256(path, ABC)
    path.write_bytes(b"abcd")
    with pytest.raises(ValueError, match=rf"must have SHA-256 {ABC}; found {hashlib.sha256(b'abcd').hexdigest()} in 4 bytes"):
        check_sha256(path, ABC)


def test_replace_file_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with replace_file(path) as temporary:
            assert temporary.suffix == path.suffix and temporary.parent == path.parent
            temporary.write_text(text)
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_replace_file_keeps_the_old_file(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stop_half_way():
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise error("stopped")

    with pytest.raises(error):
        stop_half_way()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_replace_file_leaves_errors_of_other_files_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*in\.txt"), replace_file(tmp_path / "out"):
        (tmp_path / "in.txt").read_text()
    with pytest.raises(FileNotFoundError, match="^no download$"), replace_file(tmp_path / "out"):
        raise FileNotFoundError("no download")


def test_replace_file_says_which_file_and_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"a\.txt could not be written"), replace_file(tmp_path / "file" / "a.txt"):
        pass
