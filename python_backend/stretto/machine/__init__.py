"""The machine: its GPUs and memory, processes and CUDA graphs."""
