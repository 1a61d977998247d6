"""What the processes of a cluster that have no network import."""

import subprocess
import sys


def test_targets_and_the_board_of_a_training_do_without_torch():
    code = "import sys, fullres.cluster.board, fullres.cluster.targets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
