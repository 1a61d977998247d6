"""How much memory this process uses, and what of it is Ray's object store. Linux."""

import ctypes
import mmap
from pathlib import Path


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
