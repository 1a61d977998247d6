"""What the C library does with memory that is freed. glibc; with another nothing changes.

Large tensors that go back to the system as soon as they are freed keep what is resident near what is in use,
and cost page faults: those that follow come as pages that must be cleared, more slowly still when several
processes of a machine want some at once. It is a tenth of the time of labelling images with the narrow
SMP-18, and a third of a training step's. A process that keeps what it frees was seen to grow to 1.3 times
what a training has in use, and to 2.4 times in labelling. glibc's own rule, which learns from what was freed,
has both faults.
"""

import ctypes
import platform

# For processes that are to be started: returning, and keeping. The latter with one heap for all threads, as
# the heaps that glibc makes for others than the first one hold no large tensors.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(2 << 20), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_ARENA_MAX": "1"}

# What a process that keeps freed memory may grow to, beside what is in use.
_GROWTH = 3

# Of mallopt (malloc.h), with their values for the two ways.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_RETURN = {_TRIM_THRESHOLD: 128 << 10, _MMAP_MAX: 65536}


def suit_allocator(peak_bytes: int, budget: int) -> None:
    """Keep freed memory if work that has `peak_bytes` in use at its peak stays within `budget` bytes so, else
    return it."""
    keep_freed_memory(_GROWTH * peak_bytes <= budget)


def keep_freed_memory(keep: bool) -> None:
    """For this process, or return it to the system, at once what is free now. Of threads that were there
    already only the first one profits."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in (_KEEP if keep else _RETURN).items():
        libc.mallopt(parameter, value)
    if not keep:
        libc.malloc_trim(0)
