"""A folder of targets as `fullres targets` leaves it: what is in it, and which frames of a data set have
targets there."""

from typing import Any

import pyarrow as pa
import pyarrow.dataset

from fullres.ops.errors import FullresError
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.layout import Found, Frame
from fullres.pipeline.datasets.pairs import FilesError

# Names that readers of a folder of Parquet files leave out.
SETTINGS, SUMMARY = "_targets.json", "_summary.json"


class TargetsError(FullresError):
    """Targets that cannot be made or read; one line."""


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def settings_of(out: Storage) -> dict[str, Any]:
    """What the targets in a folder were made with. Raises TargetsError where there are none, SettingsError
    where that is damaged."""
    if not out.exists(SETTINGS):
        raise TargetsError(f"{out.location}: no targets here; {SETTINGS} is missing")
    return out.settings(SETTINGS)


def frames_with_targets(out: Storage, found: Found, dataset: Dataset, split: str) -> list[Frame]:
    """Those of a split that have a row in the folder `out`. What the targets left out, as it could not be
    used, is not among them.

    Raises TargetsError where they are of another split or data set, or not whole, FilesError for rows whose
    files are not among those `found`, SettingsError, OSError.
    """
    settings = settings_of(out)
    of = (settings.get("dataset"), settings.get("split"), settings.get("classes"))
    if of != (dataset.name, split, list(dataset.classes)):
        raise TargetsError(
            f"{out.location}: targets of {of[0]}, split {of[1]}, {len(of[2] or ())} classes, not of "
            f"{dataset.name}, split {split}, {len(dataset.classes)} classes"
        )
    keys = _keys(out, settings["shards"])
    if lacking := sorted(keys - {frame.key for frame in found.frames}):
        raise FilesError(
            f"{out.location} has targets of frames that are not there ({len(lacking)}):", lacking
        )
    return [frame for frame in found.frames if frame.key in keys]


def _keys(out: Storage, parts: int) -> set[str]:
    names = [part_name(index) for index in range(parts)]
    if missing := len(set(names) - set(out.names())):
        raise TargetsError(
            f"{out.location}: {missing} of {parts} files are not there: end `fullres targets` first"
        )
    try:
        files = pyarrow.dataset.dataset([f"{out.path}/{name}" for name in names], filesystem=out.files)
        return set(files.to_table(columns=["key"])["key"].to_pylist())
    except (pa.ArrowInvalid, KeyError) as error:
        raise TargetsError(f"{out.location}: a file is damaged: run `fullres targets` again") from error
