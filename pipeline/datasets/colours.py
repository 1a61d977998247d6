"""Colours for data sets that have none of their own."""


def voc_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first `count` RGB colours of PASCAL VOC's map, at most 256: the index's bits in turn to red, green
    and blue, from the highest down. 0 is black, 1 (128, 0, 0)."""
    return tuple((_channel(index), _channel(index >> 1), _channel(index >> 2)) for index in range(count))


def _channel(bits: int) -> int:
    return sum((bits >> 3 * place & 1) << 7 - place for place in range(3))
