"""What a training leaves of its course: `metrics.jsonl`, an object a line, pictures, and the same for
TensorBoard."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from fullres.pipeline.data.images import encode_png
from fullres.pipeline.data.storage import Storage

_METRICS = "metrics.jsonl"


class Records:
    """Lines of {"step": ..., ...}, and pictures by step. `first`: the step that a training goes on from; what
    an earlier run wrote of later ones is taken out, as they come again.

    An object store, where files cannot grow, gets the whole of `metrics.jsonl` with each line, and
    TensorBoard's events with each checkpoint, a file of their own. Raises OSError.
    """

    def __init__(self, out: Storage, first: int) -> None:
        self._out = out
        lines = out.read(_METRICS).splitlines(True) if out.exists(_METRICS) else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= first]
        self._lines = b"".join(kept)
        out.write(_METRICS, self._lines)
        for name in out.names("pictures"):
            if re.fullmatch(r"pictures/step-\d+\.png", name) and name > _picture(first):
                out.remove(name)
        self._scratch = None if out.is_local else tempfile.TemporaryDirectory()
        self._folder = Path(out.path, "tensorboard") if self._scratch is None else Path(self._scratch.name)
        self._board = SummaryWriter(str(self._folder), purge_step=first + 1)

    def add(self, step: int, values: dict[str, Any]) -> None:
        line = json.dumps({"step": step, **values}).encode() + b"\n"
        if self._out.is_local:
            self._out.append(_METRICS, line)
        else:
            self._lines += line
            self._out.write(_METRICS, self._lines)
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)

    def show(self, step: int, picture: np.ndarray) -> None:
        """`picture`: H x W x 3 uint8 RGB."""
        png = encode_png(picture)
        self._out.write(_picture(step), png)
        # tensorboardX would encode it by Pillow, which nothing else here needs.
        height, width, colours = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag="validation", image=image)])
        self._board.file_writer.add_summary(summary, step)

    def hand_over(self, step: int) -> None:
        """Before a checkpoint is written: a run that goes on from it finds all that is before it."""
        if self._scratch is not None:
            self._upload()
            self._board = SummaryWriter(str(self._folder), filename_suffix=f".{step}")

    def close(self) -> None:
        if self._scratch is None:
            self._board.close()
        else:
            self._upload()
            self._scratch.cleanup()

    def _upload(self) -> None:
        self._board.close()
        for file in self._folder.iterdir():
            self._out.write(f"tensorboard/{file.name}", file.read_bytes())
            file.unlink()


def _picture(step: int) -> str:
    return f"pictures/step-{step:08d}.png"
