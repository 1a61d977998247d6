"""Whose a training's folder is: of those who train into it the last that began.

Processes whose node is lost may live on for some seconds while others go on with their training elsewhere,
and a command may be started while another one trains into the same folder. Two who write there would mix
their lines, and remove what the other one reads.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from fullres.ops.errors import FullresError
from fullres.pipeline.data.storage import Storage

_CLAIM = ".claim"


class Superseded(FullresError):
    """Another command trains into the folder."""


class OwnFolder(Storage):
    """A training's folder for the process that writes there. It is claimed by a file that says by whom;
    before anything appears in the folder or goes, the claim is read. `training`: of those who go on with each
    other's work; None: there is nobody else.

    Raises Superseded once another training has claimed it, and RuntimeError where another process of this one
    has. What passes in the moment between reading the claim and renaming a file is whole, and a step of this
    training.
    """

    def __init__(self, location: str, training: str | None = None) -> None:
        super().__init__(location)
        self._training = training or uuid.uuid4().hex
        self._claim = f"{self._training} {uuid.uuid4().hex}".encode()
        with super().create(_CLAIM) as file:
            file.write(self._claim)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        with super().create(name) as file:
            yield file
            self._check()

    def append(self, name: str, data: bytes) -> None:
        self._check()
        super().append(name, data)

    def remove(self, name: str) -> None:
        self._check()
        super().remove(name)

    def _check(self) -> None:
        there = self.read(_CLAIM)
        if there == self._claim:
            return
        if there.split()[:1] == [self._training.encode()]:
            raise RuntimeError(f"{self.location}: others go on with this training")
        raise Superseded(f"{self.location}: another training has begun in this folder")
