"""How the processes of a training divide it: the configuration's section "parallel"."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a configuration: no other fields than these."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ParallelConfig(Section):
    """How the processes of a training on a cluster divide it; there are `data` times `split` times `pipeline`
    of them.

    `data`: each computes another part of every batch. `least`: as few of them will do while the cluster has
    no room for more. `split`: so many see the same part, and share the phases that an SMP draws. `pipeline`:
    so many have a stage of the network each, through which the `accumulation` parts of a batch follow each
    other; it is best many times higher. `zero`: what each keeps a share of instead of all, DeepSpeed's ZeRO
    stage: 1 the optimizer's state, 2 and gradients, 3 and parameters. `offload`: in the memory of the host.
    """

    data: int | None = Field(default=None, ge=1)
    least: int | None = Field(default=None, ge=1)
    split: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    zero: Literal[0, 1, 2, 3] = 0
    offload: bool = False

    @model_validator(mode="after")
    def _possible(self) -> "ParallelConfig":
        if self.offload and not self.zero:
            raise ValueError("offload is true: needs zero, 1 to 3")
        if self.pipeline > 1 and (self.split > 1 or self.zero > 1 or self.offload):
            raise ValueError(f"pipeline is {self.pipeline}: with split 1, zero 0 or 1, and not with offload")
        if self.least is not None and self.least > (self.data or 0):
            raise ValueError(f"least is {self.least}: needs data, and no less than that")
        return self

    @property
    def together(self) -> int:
        """Workers that see the same part of a batch: one of the factors is 1."""
        return self.split * self.pipeline

    @property
    def _what(self) -> str:
        return f"pipeline {self.pipeline}" if self.pipeline > 1 else f"split {self.split}"

    def of(self, workers: int | None, least: int | None = None) -> "ParallelConfig":
        """With `data` as it is on so many workers, and `least` on the least of them; None: as it says. Raises
        ValueError where it does not multiply up to them."""
        data = self.data or (1 if workers is None else max(1, workers // self.together))
        if workers is not None and data * self.together != workers:
            said = f"data {self.data} times" if self.data else "a multiple of"
            raise ValueError(f"workers is {workers}: parallel asks for {said} {self._what}")
        if least is not None and least % self.together:
            raise ValueError(f"workers is {least}-{workers}: parallel asks for multiples of {self._what}")
        return self.model_copy(
            update={"data": data, "least": self.least if least is None else least // self.together}
        )

    @property
    def workers(self) -> int | None:
        """None: a training in one process, by plain torch."""
        return None if self == ParallelConfig() else (self.data or 1) * self.together
