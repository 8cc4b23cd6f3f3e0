"""What the C library's allocator learns of us: this process moves megabytes."""

_LARGEST = 2**25 - 2**13
"""glibc learns from blocks of up to 32 MiB, with what it adds to them."""


def expect_large_blocks() -> None:
    """Let glibc keep the memory of freed blocks for the next ones, up to 64 MiB at the end of its heap.

    At first it gives a block of a megabyte back to the kernel as soon as it is free, and the next one pays a page fault
    for every 4 KiB: half of the CPU time of receiving a batch. It adapts to the largest block that it saw freed, so one
    is freed here, no page of which is touched. Who set MALLOC_TRIM_THRESHOLD_ or the like keeps these settings; other
    allocators take no notice.
    """
    bytes(_LARGEST)
