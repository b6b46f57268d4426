import hashlib
import zipfile
from pathlib import Path

import pytest

from datamodules import sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def published(path: Path, content: bytes) -> tuple[str, str]:
    path.write_bytes(content)
    return path.as_uri(), hashlib.sha256(content).hexdigest()


def test_download_is_kept_and_survives_the_loss_of_its_source(tmp_path):
    url, digest = published(tmp_path / "a.bin", b"abc" * 1000)
    path = sources.download(url, digest)
    assert path.name == "a.bin"
    assert path.read_bytes() == b"abc" * 1000
    (tmp_path / "a.bin").unlink()
    assert sources.download(url, digest) == path


def test_wrong_checksum_names_both_and_leaves_nothing(tmp_path):
    url, digest = published(tmp_path / "a.bin", b"abc")
    wrong = "0" * 64
    with pytest.raises(ValueError, match=f"(?s){url}.*{digest}.*{wrong}"):
        sources.download(url, wrong)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_damaged_cache_file_is_noticed_and_fetched_again(tmp_path):
    url, digest = published(tmp_path / "a.bin", b"abc")
    path = sources.download(url, digest)
    path.write_bytes(b"abd")
    with pytest.raises(ValueError, match="was removed"):
        sources.download(url, digest)
    assert sources.download(url, digest).read_bytes() == b"abc"


def test_unreachable_url_names_url_and_where_to_put_the_file(tmp_path):
    url = (tmp_path / "absent.bin").as_uri()
    with pytest.raises(ConnectionError, match=f"(?s){url}.*put the file at .*named.bin"):
        sources.download(url, "0" * 64, name="named.bin")


def test_wheel_member_is_extracted_without_the_wheels_other_files(tmp_path):
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/data.txt", "one")
        archive.writestr("q/data.txt", "two")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    first = sources.wheel_member(wheel.as_uri(), digest, "p/data.txt", hashlib.sha256(b"one").hexdigest())
    second = sources.wheel_member(wheel.as_uri(), digest, "q/data.txt")
    assert (first.read_text(), second.read_text()) == ("one", "two")
    with pytest.raises(KeyError, match="p/none"):
        sources.wheel_member(wheel.as_uri(), digest, "p/none")
    with pytest.raises(ValueError, match=r"p/data\.txt of file"):
        sources.wheel_member(wheel.as_uri(), digest, "p/data.txt", "1" * 64)


def test_a_requirement_is_fetched_by_pip_and_its_wheel_kept(tmp_path, monkeypatch):
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: p\nVersion: 1\n")
        archive.writestr("p-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("p-1.dist-info/RECORD", "")
        archive.writestr("p/data.txt", "one")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConnectionError, match=r"pip cannot fetch p==1 .* or put its wheel into"):
        sources.wheel_member("p==1", digest, "p/data.txt")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert sources.wheel_member("p==1", digest, "p/data.txt").read_text() == "one"
    assert (sources.cache_dir() / "downloads" / digest[:16] / wheel.name).is_file()
    with pytest.raises(ValueError, match="sha256"):
        sources.wheel_member("p==1", "1" * 64, "p/data.txt")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fail():
        with sources.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bundled_lists_what_there_is():
    assert sources.bundled("Omniglot.LICENSE").read_text().startswith("The MIT License")
    with pytest.raises(FileNotFoundError, match=r"omniglot_small\.npz"):
        sources.bundled("none.npz")
