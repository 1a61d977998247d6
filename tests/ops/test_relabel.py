import numpy as np
import pytest

from fullres.ops.relabel import pair_table, relabel


@pytest.mark.parametrize("size", [(0, 3), (1, 1), (3, 5), (4, 4), (33, 77)])
def test_each_label_becomes_what_the_table_says(size):
    rng = np.random.default_rng(0)
    table = rng.permutation(256).astype(np.uint8)
    labels = rng.integers(0, 256, size, np.uint8)
    for given in (labels, np.asfortranarray(labels), labels[:, ::-1]):
        np.testing.assert_array_equal(relabel(given, pair_table(table)), table[given])
