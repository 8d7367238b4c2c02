"""The machine: GPUs, memory, devices, clocks, paths. Knows nothing of videos."""
