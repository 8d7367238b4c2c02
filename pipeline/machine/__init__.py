"""GPUs, memory, devices, clocks and paths. This room knows nothing about videos."""
