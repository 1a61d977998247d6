"""What the processes of a training on Ray tell its driver.

An actor of its own, so it imports nothing large: its process would take seconds for torch and Ray Train.
"""

from fullres.pipeline.train.report import StepReport

# A training whose processes died so often without a checkpoint between is the cause, not the victim.
_RETRIES = 3


class Board:
    """What the driver reads. `starts`: of each checkpoint, by its steps done, that so many processes went on
    from, how often. Processes that begin together are a group, and have a number; what is told by those of
    another group than the last one counts for nothing: they may have outlived their node."""

    def __init__(self) -> None:
        self.group = 0
        self.report: StepReport | None = None
        self.failure: str | None = None
        self.starts: dict[tuple[int, int], int] = {}
        self.last = ""

    def told(self) -> tuple[StepReport | None, str | None]:
        return self.report, self.failure

    def write(self, group: int, report: StepReport) -> None:
        if group == self.group:
            self.report = report

    def fail(self, group: int, why: str) -> None:
        if group == self.group:
            self.failure = self.failure or why

    def note(self, group: int, why: str) -> None:
        """What a process died of, if it can say so."""
        if group == self.group:
            self.last = f", the last of: {why}"

    def begin(self, done: int, workers: int) -> int:
        """The number of the group. Fails where as many processes began too often after one checkpoint."""
        self.group += 1
        key = (done, workers)
        self.starts[key] = self.starts.get(key, 0) + 1
        if self.starts[key] > _RETRIES + 1:
            why = f"its processes died {_RETRIES + 1} times without a step further{self.last}"
            self.fail(self.group, why)
        return self.group
