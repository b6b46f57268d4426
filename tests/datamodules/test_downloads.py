"""Downloads from a server on this machine that cuts connections, and by several processes at once."""

import hashlib
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules import sources

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends ``content``, of the first answers only as many bytes as ``cuts`` has; ranges where it ``resumes``.

    The first requests are answered by the statuses in ``errors``, and the first with a body after ``silence`` seconds.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.silence = 0.0
        self.resumes = True
        self.content = CONTENT
        self.asked: list[int] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model.safetensors"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted.group(1)) if wanted and self.server.resumes else 0
        self.server.asked.append(start)
        if self.server.errors:
            self.send_error(self.server.errors.pop(0))
            return
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            last = len(self.server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(self.server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        silence, self.server.silence = self.server.silence, 0.0
        time.sleep(silence)
        body = body[: self.server.cuts.pop(0)] if self.server.cuts else body
        self.server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("resumes", [True, False])
def test_a_cut_download_goes_on_where_it_stopped_or_begins_anew(resumes: bool, server: Server, tmp_path: Path) -> None:
    server.cuts, server.resumes = [100_000, 200_000], resumes
    assert sources.download(server.url, DIGEST).read_bytes() == CONTENT
    assert server.asked == ([0, 100_000, 300_000] if resumes else [0, 0, 0])
    assert files(tmp_path / "cache") == ["model.safetensors"]


def test_what_came_before_the_network_went_is_used_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000, 1000]
    with pytest.raises(ConnectionError, match=r"cut at 151000 of 1024000 bytes\); connect to the network, or put"):
        sources.download(server.url, DIGEST)
    assert files(tmp_path / "cache") == [".model.safetensors.part"]
    assert sources.download(server.url, DIGEST).read_bytes() == CONTENT
    assert server.asked[-1] == 151_000
    assert server.sent == len(CONTENT)


@pytest.mark.parametrize("left", [b"another file", CONTENT + b"?"])
def test_remains_of_another_file_are_found_out_and_replaced(left: bytes, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "downloads" / DIGEST[:16]
    folder.mkdir(parents=True)
    (folder / ".model.safetensors.part").write_bytes(left)
    if len(left) < len(CONTENT):
        with pytest.raises(ValueError, match="was removed"):
            sources.download(server.url, DIGEST)
        assert files(tmp_path / "cache") == []
    assert sources.download(server.url, DIGEST).read_bytes() == CONTENT


def test_other_bytes_than_expected_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(ValueError, match=f"sha256 is .*, expected {DIGEST}"):
        sources.download(server.url, DIGEST)
    assert files(tmp_path / "cache") == []


def test_processes_that_want_the_same_file_at_once_share_one_download(server: Server, tmp_path: Path) -> None:
    code = f"from datamodules import sources\nprint(sources.download({server.url!r}, {DIGEST!r}))"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate()[0].strip() for process in started}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert server.asked == [0]
    assert files(tmp_path / "cache") == ["model.safetensors"]


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server: Server, tmp_path: Path) -> None:
    server.errors = [503, 429]
    assert sources.download(server.url, DIGEST).read_bytes() == CONTENT
    assert server.asked == [0, 0, 0]
    server.errors = [503, 503, 503, 404]
    with pytest.raises(ConnectionError, match=r"HTTP Error 503: .*; connect to the network, or put the file at"):
        sources.download(server.url, DIGEST, "other")
    with pytest.raises(ConnectionError, match="HTTP Error 404"):
        sources.download(server.url, DIGEST, "other")
    assert len(server.asked) == 3 + 3 + 1


def test_a_silent_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: opened(request, timeout=0.3))
    server.silence = 1.0
    assert sources.download(server.url, DIGEST).read_bytes() == CONTENT
    assert server.asked == [0, 0]


def test_a_new_start_is_not_the_last_word(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "downloads" / DIGEST[:16]
    folder.mkdir(parents=True)
    (folder / ".model.safetensors.part").write_bytes(CONTENT + b"?")
    server.errors = [503, 503]  # the third answer is that nothing lies behind what is there
    with pytest.raises(ConnectionError, match="HTTP Error 416"):
        sources.download(server.url, DIGEST)
    assert sources.download(server.url, DIGEST).read_bytes() == CONTENT


def test_bytes_are_hashed_once_a_call(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, digest = [], hashlib.file_digest

    def counted(file: Any, algorithm: str) -> Any:
        hashed.append(file.name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for calls in (1, 2):
        sources.download(server.url, DIGEST)
        assert len(hashed) == calls


def test_a_file_that_is_there_is_only_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "downloads" / DIGEST[:16]
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(CONTENT)
    assert sources.download(server.url, DIGEST) == folder / "model.safetensors"
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refused)
    (folder / "model.safetensors").write_bytes(CONTENT[1:])
    with pytest.raises(ValueError, match=r"expected .*; remove the file .*, which was refused here \(read-only\)"):
        sources.download(server.url, DIGEST)
    monkeypatch.setattr(sources.FileLock, "acquire", refused)
    with pytest.raises(OSError, match=r"cannot write to .* \(read-only\); set ZOO_CACHE"):
        sources.download(server.url, DIGEST, "other")
