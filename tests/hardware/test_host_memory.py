"""What the C library holds goes back to the system."""

import ctypes
import platform
from pathlib import Path

import pytest

from medcot.hardware.host_memory import return_free_memory

BLOCK, COUNT = 100_000, 400  # under the C library's limit for mappings of their own


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_below_what_is_still_used_goes_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:
        libc.free(block)
    before = resident_bytes()
    assert return_free_memory()
    assert before - resident_bytes() > BLOCK * COUNT / 2
    libc.free(blocks[-1])
