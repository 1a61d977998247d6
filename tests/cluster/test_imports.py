"""What processes that have no network import."""

import subprocess
import sys


def test_targets_scenes_and_the_board_of_a_training_do_without_torch():
    modules = "fullres.cluster.board, fullres.cluster.targets, fullres.pipeline.scenes.files"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
