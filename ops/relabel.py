"""Labels through a table of 256, as `cv2.LUT`, two pixels at a time: a table of all pairs of labels halves
the look-ups, and of its 128 KiB a label map touches only what its few classes need."""

import numpy as np

from fullres.ops.jit import jit


def pair_table(table: np.ndarray) -> np.ndarray:
    """What `relabel` takes: of every two labels, one after the other in memory, what they become, 65536
    uint16, from what each label becomes, 256 uint8."""
    pairs = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    return table[pairs].view(np.uint16)


def relabel(labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """What HxW uint8 labels become by a `pair_table`, HxW uint8."""
    flat = np.ascontiguousarray(labels).reshape(-1)
    changed = np.empty_like(flat)
    even = flat.size // 2 * 2
    _look_up(flat[:even].view(np.uint16), pairs, changed[:even].view(np.uint16))
    if even < flat.size:
        changed[-1] = pairs[flat[-1] * np.uint16(257)] & 255  # twice the same label
    return changed.reshape(labels.shape)


@jit(nogil=True)
def _look_up(labels, pairs, changed):
    for i in range(labels.size):
        changed[i] = pairs[labels[i]]
