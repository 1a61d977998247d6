"""Which image each result was made from: kept beside the results, so none is taken for another image's."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.predict.outputs import OutputsError, is_done

SOURCES = "sources.jsonl"


@dataclass(frozen=True)
class Source:
    """An image file as it was when it was labelled: a replaced one has another size or time."""

    path: str
    size: int
    mtime_ns: int

    @staticmethod
    def of(path: Path) -> "Source":
        """Raises OSError."""
        stat = path.stat()
        return Source(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


class Sources:
    """The images that the results in a folder were made from, by the result's name.

    A line is added when a result is whole, and old lines go before anything is labelled anew: whenever the
    process is killed, a result either belongs to its line or has none and is made again.
    """

    def __init__(self, out: Path) -> None:
        """Raises OutputsError where `out` holds a damaged record. Writes nothing."""
        self.out, self.file = out, out / SOURCES
        self.known: dict[str, Source] = {}
        self.exists = self.file.exists()
        lines = self.file.read_bytes().split(b"\n")[:-1] if self.exists else []  # the last may be half a line
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                result = value.pop("result")
                self.known[result] = Source(**value)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise OutputsError(
                    f"{self.file} is damaged in line {number}: remove {out}, or give another folder"
                ) from error

    def resume(self, images: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
        """`pending`, after which what is known of those is forgotten."""
        todo, kept = self._split(images)
        lines = (self._line(stem, source) for stem, source in kept.items())
        write_bytes_atomically(self.file, b"".join(lines))
        self.known, self.exists = kept, True
        return todo

    def pending(self, images: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
        """The images (file, name of the result without ending) that are to be labelled: those without a
        result, and those that have changed since. Their files aren't read.

        Raises OutputsError where a result is that of another image, or of one that nobody knows.
        """
        return self._split(images)[0]

    def _split(self, images: list[tuple[Path, Path]]) -> tuple[list[tuple[Path, Path]], dict[str, Source]]:
        todo, kept = [], dict(self.known)
        for path, stem in images:
            before = kept.get(stem.as_posix())
            if before is None:
                if not self.exists and is_done(self.out, stem):
                    raise OutputsError(
                        f"{self.out} holds results for {stem}, but not which image they were made from "
                        f"({SOURCES} is missing): give another folder, or remove it"
                    )
                todo.append((path, stem))
                continue
            try:
                now = Source.of(path)
            except OSError:  # listed with its reason when its turn comes
                now = None
            if now is not None and now.path != before.path:
                raise OutputsError(
                    f"{self.out} holds the result {stem} of {before.path}, asked for is {now.path}: "
                    "give another folder"
                )
            if now != before or not is_done(self.out, stem):
                del kept[stem.as_posix()]
                todo.append((path, stem))
        return todo, kept

    def add(self, stem: Path, source: Source) -> None:
        """The result is whole, and of this image."""
        with self.file.open("ab") as file:
            file.write(self._line(stem.as_posix(), source))

    @staticmethod
    def _line(result: str, source: Source) -> bytes:
        return json.dumps({"result": result, **asdict(source)}).encode() + b"\n"
