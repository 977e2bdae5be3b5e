"""The C library's allocator, set for programs that free and allocate the same large tensors."""

import ctypes
import functools
import os

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor, instead of giving it back to the system.

    By default every large tensor is mapped anew, and the system clears its pages one by one: a
    third of the time of a network on a CPU, or more. The process then stays as large as it once
    was. Whoever has set allocator variables (`MALLOC_*`, `GLIBC_TUNABLES`) is left alone, as are
    other C libraries.

    Returns:
        Whether the allocator was changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  (raises where this is not glibc)
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(name, value) for name, value in settings)
