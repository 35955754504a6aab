# SPDX-License-Identifier: Apache-2.0
"""Processes that are timed one after the other, each when the system is done with what the one before has left behind.

A virtual machine with free page reporting (feature 5 of virtio's balloon) gives freed memory back to its host. While it
does, from a second after a process has ended on, all of its CPUs stand still for about 40 ms in every 100, and it takes
2.5 to 6 seconds per GiB."""
import time
from pathlib import Path

GIB = 2**30


def returns_memory(drivers=Path("/sys/bus/virtio/drivers")):
    """Whether freed memory of this machine goes back to a host."""
    return any(features.read_text()[5:6] == "1" for features in drivers.glob("virtio_balloon/virtio*/features"))


class Turns:
    """take(run) calls run() for the figures of the next process, whose peak memory peak_of(figures) tells in bytes."""

    def __init__(self, peak_of, wait=time.sleep, returns=returns_memory):
        self.peak_of, self.wait = peak_of, wait
        self.returns = returns()
        self.left = 0

    def take(self, run):
        if self.returns and self.left > 0:
            self.wait(1 + 6 * self.left / GIB)
        self.left = 4 * GIB  # if it fails, who knows
        figures = run()
        self.left = self.peak_of(figures)
        return figures
