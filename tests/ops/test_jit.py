import subprocess
import sys

WITHOUT_A_PLACE = """
from numba.core import caching

caching.CacheImpl._locator_classes = []  # as where neither the source's folder nor a home can be written
import numpy as np
from fullres.ops.relabel import pair_table, relabel

table = np.arange(256, dtype=np.uint8)[::-1].copy()
print(relabel(np.array([[0, 1, 255, 4]], np.uint8), pair_table(table)).tolist())
"""


def test_without_a_place_for_the_cache():
    """A read-only installation, and no home."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_PLACE], capture_output=True, text=True)
    assert done.stdout == "[[255, 254, 0, 251]]\n", done.stderr
