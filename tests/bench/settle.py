# SPDX-License-Identifier: Apache-2.0
"""Time for the system to finish with a process that has ended, so that it does not count against the next one.

A virtual machine with free page reporting (feature 5 of virtio's balloon) gives freed memory back to its host. While it
does, from a second after a process has ended on, all of its CPUs stand still for about 40 ms in every 100, and it takes
several seconds per GiB."""
import time
from pathlib import Path

SECONDS_PER_GIB = 6  # it was 4.5 to 5.5 where this was measured


def returns_memory(drivers=Path("/sys/bus/virtio/drivers")):
    """Whether freed memory of this machine goes back to a host."""
    return any(features.read_text()[5:6] == "1" for features in drivers.glob("virtio_balloon/virtio*/features"))


def settle(peak_bytes):
    """Waits for what a process of that size has left behind."""
    if returns_memory():
        time.sleep(SECONDS_PER_GIB * peak_bytes / 2**30)
