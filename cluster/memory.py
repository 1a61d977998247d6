"""How much memory this process uses, and what its C library does with memory that is freed. Linux.

glibc's own rule, which learns from what was freed, lets a worker grow to twice what is in use. Workers
therefore start with ENVIRONMENT: large tensors go back to the system as soon as they are freed, which keeps
what is resident near what is in use and costs page faults (a tenth of the narrow SMP-18's time, more when
several workers of a machine have them at once). Where the budget has room, `suit_allocator` lets the process
keep what it frees instead.
"""

import ctypes
import mmap
import platform
from pathlib import Path

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2 << 20), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# What a process that keeps freed memory was seen to grow to, beside what was in use: at most 2.4 times.
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
    """For this process, or return it to the system, at once what is free now. Nothing without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in (_KEEP if keep else _RETURN).items():
        libc.mallopt(parameter, value)
    if not keep:
        libc.malloc_trim(0)


def release_store() -> None:
    """Have this process no longer count the pages of Ray's object store that it has touched, which stay as
    they are and come back when touched again. Without this, every image that a worker has ever read and every
    result that it has written would stay resident."""
    libc = ctypes.CDLL(None)
    for begin, end in _store_mappings():
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _store_mappings() -> list[tuple[int, int]]:
    """Where shared memory of the object store lies in this process."""
    with open("/proc/self/maps") as maps:
        fields = [line.split() for line in maps if "/plasma" in line]
    spans = [field[0].split("-") for field in fields if field[1].endswith("s")]
    return [(int(begin, 16), int(end, 16)) for begin, end in spans]


def available_bytes() -> int:
    """Memory that new processes can have: what the machine has free, or what the container's limit leaves."""
    free = _told("/proc/meminfo", "MemAvailable")
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if not limit.exists() or not (most := limit.read_text().strip()).isdecimal():
        return free
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])  # a cache gives way
    return min(free, int(most) - used)


def resident_bytes() -> int:
    return _told("/proc/self/status", "VmRSS")


def peak_resident_bytes() -> int:
    """The most that this process has had resident since it began, or since `forget_peak`."""
    return _told("/proc/self/status", "VmHWM")


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM


def _told(path: str, field: str) -> int:
    """Bytes, of a line in KiB."""
    with open(path) as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024
