"""Where one machine is outgrown: TPU VMs, GPU nodes and clusters, and sweeps of many studies."""
