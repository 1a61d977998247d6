"""Names of tensors, and what they become."""

from collections.abc import Mapping, Sequence

from torch import Tensor

Rows = Sequence[tuple[str, str]]


class UnknownNames(ValueError):
    """Names that a publisher's networks do not have, as far as they are read here."""

    def __init__(self, publisher: str, names: list[str]) -> None:
        super().__init__(f"{publisher}: {', '.join(names)}")
        self.publisher, self.names = publisher, names


def has(state: Mapping[str, Tensor], start: str) -> bool:
    """Whether a name starts so."""
    return any(name.startswith(start) for name in state)


def with_starts(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """The first row that a name starts as says what stands there instead."""
    renamed = {}
    for name, tensor in state.items():
        start, instead = next(((a, b) for a, b in rows if name.startswith(a)), ("", ""))
        renamed[instead + name.removeprefix(start)] = tensor
    return renamed
