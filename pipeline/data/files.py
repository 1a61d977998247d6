"""Which files there are below a folder, and how lists of names are read: for all jobs alike."""

import codecs
import os
from collections.abc import Collection, Iterator
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
