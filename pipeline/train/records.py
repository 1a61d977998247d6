"""What a training leaves of its course: `metrics.jsonl`, an object a line, and the same for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from fullres.pipeline.data.files import write_bytes_atomically


class Records:
    """Lines of {"step": ..., ...}. `first`: the step that a training goes on from; what an earlier run wrote
    of later ones is taken out, as they come again."""

    def __init__(self, folder: Path, first: int) -> None:
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_bytes().splitlines(True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= first]
        write_bytes_atomically(self.path, b"".join(kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def add(self, step: int, values: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()
