import os
import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from recognizer.memory import keep_freed_memory
{call}
for _ in range(50):
    torch.zeros(40 << 20, dtype=torch.uint8).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(call: str, **variables: str) -> int:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, env=env | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_freed_memory_is_used_again():
    # 50 tensors of 10,240 pages each.
    per_tensor = (40 << 20) // resource.getpagesize()
    without, kept = page_faults(""), page_faults("assert keep_freed_memory()")
    assert without - kept > 40 * per_tensor
    # Somebody else's choice stands.
    page_faults("assert not keep_freed_memory()", MALLOC_ARENA_MAX="2")
