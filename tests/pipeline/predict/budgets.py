"""The least memory budget."""

import re

import pytest

from fullres.pipeline.predict.plan import plan_image
from fullres.pipeline.predict.schedule import BudgetError

MIB = 1 << 20


def least_said(tree, size, **planned):
    """Bytes that the message of a BudgetError asks for."""
    with pytest.raises(BudgetError) as caught:
        plan_image(tree, size, memory_budget=1, **planned)
    return int(re.search(r"at least (\d+) MiB", str(caught.value))[1]) * MIB


def fits(tree, size, budget, **planned):
    try:
        plan_image(tree, size, memory_budget=budget, **planned)
    except BudgetError:
        return False
    return True


def least_budget(tree, size, **planned):
    """The least that works, to a few kibibytes."""
    low, high = 0, 1 << 30
    while high - low > 4096:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(tree, size, middle, **planned) else (middle, high)
    return high
