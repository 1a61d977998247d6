"""Which image or prediction belongs to which label file: by relative path, less the data set's endings."""

from collections.abc import Iterable
from pathlib import Path

from fullres.ops.errors import FullresError
from fullres.pipeline.data.files import files_below
from fullres.pipeline.datasets.dataset import Dataset

LABEL_SUFFIXES = (".png", ".tif", ".tiff")


class FilesError(FullresError, ValueError):
    """Files that do not go together. The message names up to ten; `problems` holds all, one line each."""

    def __init__(self, headline: str, problems: list[str]) -> None:
        self.problems = problems
        shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        super().__init__("\n  ".join([headline, *shown]))


def label_maps(dataset: Dataset, files: Iterable[tuple[Path, str]]) -> dict[str, Path]:
    """The label map of each frame among (file, name less suffix). Where a frame is stored in two ways, the
    first of `dataset.encodings` counts. Raises FilesError for two files of one frame and encoding."""
    by_ending: dict[str, dict[str, Path]] = {ending: {} for ending in dataset.encodings}
    for path, stem in files:
        ending = dataset.label_ending(path)
        if ending not in by_ending:
            continue
        key, of_ending = stem.removesuffix(ending), by_ending[ending]
        if key in of_ending:
            raise FilesError("two label maps for one frame:", [str(of_ending[key]), str(path)])
        of_ending[key] = path
    merged: dict[str, Path] = {}
    for of_ending in by_ending.values():
        merged = of_ending | merged
    return merged


def pair_with_labels(
    images: Iterable[tuple[Path, Path]], label_dir: Path, dataset: Dataset, what: str
) -> list[tuple[Path, Path]]:
    """(image, label file) for each (image, relative stem), sorted. `what` names the images in messages.

    Raises FilesError for images without labels, labels without image, and two images or label maps of one
    frame.
    """
    by_key: dict[str, Path] = {}
    for path, stem in images:
        key = stem.as_posix().removesuffix(dataset.image_ending)
        if key in by_key:
            raise FilesError(f"two {what}s for one frame:", [str(by_key[key]), str(path)])
        by_key[key] = path
    if not label_dir.is_dir():
        raise FilesError(f"{label_dir}: no such folder", [])
    stems = [
        (path, path.relative_to(label_dir).with_suffix("").as_posix())
        for path in files_below(label_dir, LABEL_SUFFIXES)
    ]
    labels = label_maps(dataset, stems)
    if not labels:
        names = ", ".join(f"*{ending}.png" for ending in dataset.encodings)
        raise FilesError(f"{label_dir}: no labels of {dataset.name}; they are named {names}", [])
    unmatched = [f"{by_key[key]}: no label" for key in sorted(by_key.keys() - labels.keys())]
    unmatched += [f"{labels[key]}: no {what}" for key in sorted(labels.keys() - by_key.keys())]
    if unmatched:
        raise FilesError(f"files without their counterpart ({len(unmatched)}):", unmatched)
    return [(by_key[key], labels[key]) for key in sorted(labels)]
