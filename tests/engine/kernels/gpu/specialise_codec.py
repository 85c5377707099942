"""Count the binaries of a codec's kernels on a GPU, for windows of 1 to 20 steps and batches of 1 to 3 utterances."""

import torch

from stretto.codecs.kernels import convolution, join
from stretto.codecs.kernels.operators import KERNELS
from tests.engine.kernels.gpu.specialise import Launches

CHANNELS = 32
SIZE = 1024  # of a state

if __name__ == "__main__":
    joins = Launches(join.join_kernel)
    join.join_kernel = joins  # type: ignore[assignment]
    convolutions = Launches(convolution.convolve_kernel)
    convolution.convolve_kernel = convolutions  # type: ignore[assignment]
    factors = torch.zeros(2, CHANNELS)
    weight = torch.zeros(2 * CHANNELS, 7, CHANNELS)
    for batch in range(1, 4):
        states = torch.zeros(2, batch, SIZE)
        for steps in range(1, 21):
            x = torch.zeros(batch, CHANNELS, steps)
            both = KERNELS["join"](x, *states, 3 * steps, 6, steps // 3, 2, *factors)
            KERNELS["convolve"](both, weight, None, 1, 0, 1, 0, steps, "tf32x3")
    print("join_kernel", len(joins.chosen_by))
    print("convolve_kernel", len(convolutions.chosen_by))
