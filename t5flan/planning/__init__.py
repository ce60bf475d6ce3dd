"""Plans a run before it is paid for: scaling laws, FLOPs, memory and cost; and fits the laws to finished runs."""
