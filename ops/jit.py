"""Numba's compiler with its cache, where there is a place for one."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(**options: Any) -> Callable[[Function], Function]:
    """Compile a function, and keep it for the next process. Numba writes beside the source or in the user's
    home; where neither can be written each process compiles it anew. `options` are those of `numba.njit`."""

    def compiled(function: Function) -> Function:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no place for the cache
            return njit(**options)(function)

    return compiled
