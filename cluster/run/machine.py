"""How busy the machine of a run is, and what it has left, for the bottleneck report."""

from __future__ import annotations

import os

import psutil

from cluster.config.run_config import RunConfig
from cluster.reports.bottleneck import Machine
from cluster.workers.resources import Hardware, spare_actors


class MachineWatch:
    """Called once at the start of a stretch and once at its end."""

    def __init__(self, config: RunConfig, hardware: Hardware) -> None:
        self._config, self._hardware = config, hardware
        # What other machines' cores do is not seen from here; and GPUs are what counts where there are some.
        self._cores = (os.cpu_count() or 0) if hardware.nodes == 1 and not hardware.use_gpu else 0

    def __call__(self) -> Machine:
        busy = psutil.cpu_percent() / 100 if self._cores else 0.0
        room = spare_actors(self._config, use_gpu=self._hardware.use_gpu) if self._config.method == "sapo" else 0
        return Machine(room, self._cores, busy)
