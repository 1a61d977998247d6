"""Drawn scenes for tests: one takes a sixth of a second however small it is, so a process draws each once."""

from functools import cache

import numpy as np

from fullres.pipeline import scenes


def render_scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of the caller's own."""
    image, labels = _drawn(seed, height, width)
    return image.copy(), labels.copy()


_drawn = cache(scenes.render_scene)
