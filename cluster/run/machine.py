"""How busy the machine of a run is, and what it has left, for the bottleneck report."""

from __future__ import annotations

import os

import psutil

from cluster.config.run_config import RunConfig
from cluster.reports.bottleneck import Machine
from cluster.workers.resources import Hardware, spare_actors


class MachineWatch:
    """Called at the start of a stretch and at its end."""

    def __init__(self, config: RunConfig, hardware: Hardware) -> None:
        self._config, self._hardware = config, hardware
        # What other machines' cores do is not seen from here; and GPUs are what counts where there are some.
        self._cores = (os.cpu_count() or 0) if hardware.nodes == 1 and not hardware.use_gpu else 0
        self._busy_s, self._whole_s = _cpu_seconds()

    def __call__(self) -> Machine:
        """What is left now; how busy the cores were since the last call."""
        busy_s, whole_s = _cpu_seconds()
        busy = (busy_s - self._busy_s) / max(whole_s - self._whole_s, 1e-9)
        self._busy_s, self._whole_s = busy_s, whole_s
        room = spare_actors(self._config, use_gpu=self._hardware.use_gpu) if self._config.method == "sapo" else 0
        return Machine(room, self._cores, busy if self._cores else 0.0)


def _cpu_seconds() -> tuple[float, float]:
    """Of all cores together since the machine started: busy, and in all."""
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    # Time of guests is counted as the user's already.
    whole_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return whole_s - idle_s, whole_s
