"""Megabytes that come and go are not given back to the kernel in between."""

import platform
import subprocess
import sys

import pytest

_CHURN = """
import resource
import grpc
from groupreplay.connection import Login, open_channel

def churned():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [b"x" * 2**21 for _ in range(10)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(churned())
open_channel("127.0.0.1:1", Login()).close()
churned()
print(churned())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have allocators of their own")
def test_a_process_with_a_client_keeps_the_memory_of_freed_messages() -> None:
    """Page faults cost a client more CPU time than all else of a batch."""
    done = subprocess.run([sys.executable, "-c", _CHURN], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
