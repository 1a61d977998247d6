"""Folders on local disks and in object stores, through pyarrow's file systems.

A folder is a local path or a URI: `s3://bucket/folder`, `gs://bucket/folder`. Settings go behind the URI, as
pyarrow takes them: `s3://bucket/folder?endpoint_override=http://host:9000&region=eu-west-1`; credentials come
from where each provider keeps them (environment, profile, instance).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import fs

from fullres.ops.errors import FullresError
from fullres.pipeline.data.files import atomic, files_below


class SettingsError(FullresError, ValueError):
    """A folder that was begun with other settings."""


class Storage:
    """One folder. It can be sent to other processes; names are relative POSIX paths. Errors are OSErrors."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.files, path = _file_system(location)
        self.path = path.rstrip("/")
        self.is_local = isinstance(self.files, fs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.anywhere,)

    @property
    def anywhere(self) -> str:
        """The location for processes that may be in other folders: absolute."""
        return (self.path or "/") if self.is_local else self.location

    def names(self, folder: str = "") -> list[str]:
        """All files below a folder, sorted; hidden ones (".name") are left out. A missing folder is empty."""
        return sorted(self.versions(folder))

    def versions(self, folder: str = "") -> dict[str, tuple[int, int]]:
        """The same files with their size in bytes and the time of their last change in nanoseconds: a file
        that is replaced gets others."""
        if self.is_local:
            paths = {path.relative_to(self.path).as_posix(): path for path in files_below(self._at(folder))}
            return {name: _version(path) for name, path in paths.items()}
        selector = fs.FileSelector(self._at(folder), allow_not_found=True, recursive=True)
        infos = (i for i in self.files.get_file_info(selector) if i.type == fs.FileType.File)
        below = {info.path[len(self.path) + 1 :]: (info.size, info.mtime_ns or 0) for info in infos}
        return {n: v for n, v in below.items() if not any(part[0] == "." for part in n.split("/"))}

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or the folder itself."""
        return self.files.get_file_info(self._at(name)).type != fs.FileType.NotFound

    def read(self, name: str, first: int | None = None) -> bytes:
        """A file's bytes, or its `first` ones."""
        with (
            self._naming(name),
            self.files.open_input_stream(self._at(name), compression=None) as stream,
        ):
            return stream.read(first)

    def open(self, name: str) -> pa.NativeFile:
        """For reading at random places."""
        with self._naming(name):
            return self.files.open_input_file(self._at(name))

    @contextmanager
    def fetch(self, name: str) -> Iterator[IO[bytes]]:
        """Yield a whole file, for many small reads at random places."""
        if self.is_local:
            with open(self._at(name), "rb") as file:
                yield file
            return
        with tempfile.TemporaryFile() as file:
            with (
                self._naming(name),
                self.files.open_input_stream(self._at(name), compression=None) as stream,
            ):
                shutil.copyfileobj(stream, file, 1 << 20)
            file.seek(0)
            yield file

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Yield a file to write to; the file is there at the end, whole, or not at all where the block
        raises or the process dies. An existing one is replaced."""
        target = self._at(name)
        if not self.is_local:  # an object appears when its upload is complete
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with self._naming(name), self.files.open_output_stream(target, compression=None) as stream:
                    shutil.copyfileobj(file, stream, 1 << 20)
            return
        with atomic(target) as temporary, temporary.open("wb") as file:
            yield file

    def write(self, name: str, data: bytes) -> None:
        with self.create(name) as stream:
            stream.write(data)

    def append(self, name: str, data: bytes) -> None:
        """To a file on a local disk; objects cannot grow."""
        with open(self._at(name), "ab") as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """A file, if it is there."""
        with self._naming(name), suppress(FileNotFoundError):
            self.files.delete_file(self._at(name))

    def locate(self, name: str) -> str:
        """A file's own location, as messages say it."""
        if "://" not in self.location:
            return f"{self.location.rstrip('/')}/{name}"
        folder, mark, settings = self.location.partition("?")
        return f"{folder.rstrip('/')}/{name}{mark}{settings}"

    def claim(
        self, name: str, settings: dict[str, Any], what: str, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write down in the file `name` what this folder is for, or see that it is for just this. What is
        `chosen` once goes on: the values that were chosen first are returned.

        Raises SettingsError where it holds `what` with other settings.
        """
        asked, own = json.loads(json.dumps(settings)), dict(chosen or {})
        if not self.exists(name):
            self.write(name, json.dumps({**asked, **own}, indent=1).encode())
            return own
        before = self.settings(name)
        own = {key: before.pop(key, value) for key, value in own.items()}
        differing = [
            f"{key}: {before.get(key)} there, {asked.get(key)} now"
            for key in before | asked
            if before.get(key) != asked.get(key)
        ]
        if differing:
            raise SettingsError(
                f"{self.location} holds {what} with other settings ({'; '.join(differing)}): "
                "give another folder, or remove it"
            )
        return own

    def settings(self, name: str) -> dict[str, Any]:
        """What `claim` wrote. Raises SettingsError where it is damaged."""
        try:
            return dict(json.loads(self.read(name)))
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{self.location}/{name} is damaged ({error}): remove it, or give another folder"
            ) from error

    def sweep(self, folder: str, beginning: str) -> None:
        """Remove what killed processes left of their writing: hidden files of names with this beginning."""
        if self.is_local:
            for left in Path(self._at(folder)).glob(f".{beginning}*"):
                left.unlink(missing_ok=True)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Google's storage does not say in its errors which file it means."""
        try:
            yield
        except OSError as error:
            if (at := self._at(name)) in str(error):
                raise
            raise type(error)(f"{at}: {error}") from error

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path


def _version(path: Path) -> tuple[int, int]:
    """A link that leads nowhere has a version too: reading it says so."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _file_system(location: str) -> tuple[fs.FileSystem, str]:
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise OSError(f"{location}: {error}") from error
