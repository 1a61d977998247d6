"""A drawn scene as two files. Processes that draw import this module, and nothing that takes long."""

from pathlib import Path

import cv2

from fullres.pipeline.data.images import ImageError, image_size, write_png
from fullres.pipeline.scenes import render_scene


def write_scene(out: Path, seed: int, height: int, width: int) -> None:
    """Into images/ and labels/ of a folder; both files that are there stay. Raises ImageError where they have
    another size, OSError."""
    image_path, label_path = (out / kind / f"scene_{seed:06}.png" for kind in ("images", "labels"))
    if image_path.exists() and label_path.exists():
        for path in (image_path, label_path):
            if (size := image_size(path)) != (height, width):
                raise ImageError(
                    f"{path}: {size[1]}x{size[0]} pixels, not {width}x{height}: remove it or change --out"
                )
        return
    cv2.setNumThreads(1)
    image, labels = render_scene(seed, height, width)
    write_png(label_path, labels)
    write_png(image_path, image)
