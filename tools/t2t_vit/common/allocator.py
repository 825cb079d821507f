"""The memory allocator of the C library (glibc; nothing happens where there is another)."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory(megabytes):
    """Keep up to so much freed memory for the next request, instead of giving it back and clearing new pages.

    Large tensors, and decoded images, are otherwise new memory each time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)  # large blocks too come from the heap, the only place that keeps them
        libc.mallopt(_M_ARENA_MAX, 1)  # one heap for all threads
        libc.mallopt(_M_TRIM_THRESHOLD, min(megabytes * 2**20, 2**31 - 1))
