"""Files from the web, once: into a cache, where they stay.

A file comes whole or not at all: it is written beside its place under another name, checked, and renamed.
What came before a break is gone on with, if the server says that it still has the same file. Proxies are
those of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock

from fullres.ops.errors import FullresError

_TIMEOUTS = (10, 60)  # seconds, to connect and between two pieces
_PIECE = 1 << 16  # bytes that a break may cost
_BREAKS = 5  # in a row without a byte between them
_UNANSWERED = 2  # tries of a server that has never answered: most likely there is no network
_PAUSE = 1.0  # seconds after the first of them, twice as many after each other one


class _Broken(requests.ConnectionError):
    """Another try may help."""


class FetchError(FullresError, OSError):
    """A file that cannot be had; one line, which says where it could be put by hand."""


def cache_folder() -> Path:
    """`FULLRES_CACHE`, or `fullres` in the user's folder for caches."""
    if own := os.environ.get("FULLRES_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fullres"


def place_of(address: str) -> Path:
    """Where the file of an address lies in the cache: under its name, in a folder of that address alone."""
    name = Path(unquote(urlsplit(address).path)).name or "file"
    return cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def fetch(
    address: str, sha256: str = "", progress: Callable[[int, int | None], None] = lambda done, total: None
) -> Path:
    """The file of an `https://` or `http://` address, fetched if it is not in the cache yet.

    Args:
        sha256: how the file's digest begins, in hexadecimal; "": nobody says.
        progress: told the bytes that are there and, where the server says, of how many.

    A file that is there is checked too. Other processes that want the same one wait. Raises FetchError.
    """
    place = place_of(address)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            if not place.is_file():
                _Fetch(address, place, progress).whole(sha256)
            elif (found := _digest(place, sha256)) is not None:
                raise FetchError(f"{place}: its SHA-256 is {found}..., not {sha256}...: remove it")
    except FetchError:
        raise
    except OSError as error:  # of requests too
        raise FetchError(f"{address}: {_short(error)}; the file may be put at {place}") from error
    return place


def _digest(path: Path, sha256: str) -> str | None:
    """How the file's digest begins where that is not as it should be."""
    if not sha256:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found.startswith(sha256.lower()) else found[: len(sha256)]


class _Fetch:
    """One file on its way."""

    def __init__(self, address: str, place: Path, progress: Callable[[int, int | None], None]) -> None:
        self.address, self.place, self.progress = address, place, progress
        self.part = place.with_name(f".{place.name}.part")
        self.version = place.with_name(f".{place.name}.version")  # what the server calls the part's file
        self.answered = False

    def whole(self, sha256: str) -> None:
        breaks = 0
        while True:
            before = self._size()
            try:
                self._go_on()
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                breaks = 1 if self._size() > before else breaks + 1
                if breaks == (_BREAKS if self.answered else _UNANSWERED):
                    raise
                time.sleep(_PAUSE * 2 ** (breaks - 1))
        if (found := _digest(self.part, sha256)) is not None:
            self._drop()
            raise FetchError(
                f"{self.address}: the SHA-256 of what came is {found}..., not {sha256}...: another file, or "
                "damaged on its way"
            )
        os.replace(self.part, self.place)
        self._drop()

    def _go_on(self) -> None:
        """All that is left, to the file's end."""
        begun = self._size()
        headers = {"Accept-Encoding": "identity"}  # bytes as they are in the file
        if begun and self.version.is_file():
            headers |= {"Range": f"bytes={begun}-", "If-Range": self.version.read_text()}
        with requests.get(self.address, headers=headers, stream=True, timeout=_TIMEOUTS) as answer:
            self.answered = True
            status = f"the server says {answer.status_code} {answer.reason}"
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                self._drop()  # the part is more than there is
                raise _Broken(status)
            if answer.status_code == requests.codes.too_many_requests or answer.status_code >= 500:
                raise _Broken(status)
            if not answer.ok:
                raise FetchError(f"{self.address}: {status}")
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
                begun = 0
            length = answer.headers.get("Content-Length")
            coded = "Content-Encoding" in answer.headers  # though it was asked not to
            total = None if length is None or coded else begun + int(length)
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if version and not version.startswith("W/"):  # a weak one may be that of other bytes
                self.version.write_text(version)
            elif not begun:
                self.version.unlink(missing_ok=True)
            with self.part.open("ab" if begun else "wb") as file:
                self.progress(begun, total)
                for piece in answer.iter_content(_PIECE):
                    file.write(piece)
                    self.progress(file.tell(), total)
        if total is not None and self._size() != total:
            raise _Broken(f"it broke off at {self._size()} of {total} bytes")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def _short(error: Exception) -> str:
    """What went wrong, without the layers that it came through."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    broken = isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError)
    if broken and not isinstance(error, _Broken):
        return "the server cannot be reached, or broke off"
    return str(error).splitlines()[0]
