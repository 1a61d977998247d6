"""Weights that others have published, by name, and weights from the web.

`published.csv` says of each: the network of the catalogue and whose it is like, whose classes it labels, the
mean IoU in percent that its publisher measured on the validation images (at one scale, but for networks of
several), how its SHA-256 begins where that is known, and the address. `tests/peers/list_published.py` wrote
it from the publishers' own tables. Some give an address for browsers alone: such a file is put into its place
by hand.
"""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from fullres.models.catalogue import Publisher
from fullres.models.weights import WeightsError
from fullres.pipeline.data.fetch import cache_folder, fetch, place_of


@dataclass(frozen=True)
class Published:
    """A line of the table."""

    name: str
    model: str
    like: Publisher | None
    dataset: str
    miou: float
    sha256: str
    address: str

    @property
    def by_hand(self) -> bool:
        """Whether the address is a page, not the file."""
        return self.address.startswith("https://drive.google.com/")

    @property
    def place(self) -> Path:
        """Where the file lies when it is there."""
        if not self.by_hand:
            return place_of(self.address)
        return cache_folder() / "by-hand" / f"{self.name.replace(':', '-')}.pth"


@cache
def published() -> dict[str, Published]:
    """All of the table, by name, in its order."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["name"]: Published(**(row | {"like": row["like"] or None, "miou": float(row["miou"])}))
        for row in rows
    }


def is_remote(weights: str) -> bool:
    """Whether it is no path: a name of the table, or an address."""
    return weights.startswith(("https://", "http://", "hf://")) or weights.split(":")[0] in _publishers()


def local_weights(
    weights: str, progress: Callable[[int, int | None], None] = lambda done, total: None
) -> tuple[Path, Published | None]:
    """The file that `weights` means, fetched if need be, and its line of the table: a path,
    `mmseg:pspnet_r101-d8_512x1024_80k_cityscapes`, an address, or `hf://owner/repository/file`, of a revision
    `hf://owner/repository@revision/file`. `HF_ENDPOINT` may name a mirror, as for Hugging Face's own tools.

    Raises WeightsError for a name that is not in the table and for a file that is to be put there by hand,
    FetchError.
    """
    if not is_remote(weights):
        return Path(weights), None
    if weights.startswith("hf://"):
        return fetch(_hugging_face(weights), progress=progress), None
    if "://" in weights:
        return fetch(weights, progress=progress), None
    if weights not in published():
        near = get_close_matches(weights, published(), 3, 0.4)
        raise WeightsError(f"weights {weights}: not in the table; near ones: {', '.join(near) or 'none'}")
    found = published()[weights]
    if found.by_hand:
        if not found.place.is_file():
            raise WeightsError(
                f"weights {weights}: their publisher has them behind a page for browsers: save the file of "
                f"{found.address} as {found.place}"
            )
        return found.place, found
    return fetch(found.address, found.sha256, progress), found


def _publishers() -> set[str]:
    return {name.split(":")[0] for name in published()}


def _hugging_face(weights: str) -> str:
    parts = weights.removeprefix("hf://").split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise WeightsError(f"weights {weights}: hf://owner/repository/file")
    owner, repository, file = parts
    repository, _, revision = repository.partition("@")
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{host}/{owner}/{repository}/resolve/{revision or 'main'}/{file}"
