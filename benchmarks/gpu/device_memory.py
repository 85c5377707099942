"""Memory of the GPU, as read from the driver and from torch."""

from benchmarks.gpu.jobs import Setup


def free_mib(setup: Setup) -> int:
    """Return the free memory of the GPU in MiB; 0 in a dry run."""
    import torch

    return 0 if setup.is_small else torch.cuda.mem_get_info()[0] >> 20


def torch_mib(setup: Setup) -> int:
    """Return how much memory this process has reserved on the GPU for tensors, in MiB; 0 in a dry run."""
    import torch

    return 0 if setup.is_small else torch.cuda.max_memory_reserved() >> 20
