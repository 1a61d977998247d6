"""Which files there are below a folder, how lists of names are read, and how files are written: for all jobs
alike."""

import codecs
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def files_below(folder: str | Path, suffixes: Collection[str] = ()) -> list[Path]:
    """All files, sorted; of these `suffixes` alone (".png", in small letters) if there are any.

    Linked folders are followed, but not back into a folder that they lie in. Every link is a file of its own
    name; one that leads nowhere is among them, and fails when it is read. Hidden files and folders (".name")
    are left out. A missing folder is empty.
    """
    every = _below(Path(folder), ())
    return sorted(path for path in every if not suffixes or path.suffix.lower() in suffixes)


def _below(folder: Path, within: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in within:
        return
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name[0] == ".":
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _below(path, (*within, real))
        elif entry.is_file() or entry.is_symlink():
            yield path


def text_lines(data: bytes) -> list[str]:
    """The lines of a text file in UTF-8 or, where it begins with that mark, UTF-16.

    Raises UnicodeDecodeError, a ValueError.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig").splitlines()


def write_bytes_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` at the end, or goes where the block raises.

    It lies in the same folder (made if missing), has the same suffix and a hidden name that begins as that of
    `path` does, so a file left behind by a killed process is never taken for another. That name is shortened:
    names may be as long as a file system allows already.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
