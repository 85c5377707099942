"""Count the binaries of a codec's kernels on a GPU, for windows of 1 to 20 steps and batches of 1 to 3 utterances."""

import torch
from torch import nn

from stretto.codecs.device import Ending, StatePart, convolve
from stretto.codecs.kernels import depthwise, operators, product
from tests.engine.kernels.gpu.specialise import Launches

CHANNELS = 32
SIZE = 1024  # of a state


def launch(layers: list[nn.Conv1d]) -> None:
    """Launch layers for all windows and batches."""
    library = torch.library.Library("stretto", "FRAGMENT")
    for name, kernel in operators.KERNELS.items():
        library.impl(name, kernel, "CPU")
    for batch in range(1, 4):
        before, after = torch.zeros(2, batch, SIZE)
        for steps in range(1, 21):
            x = torch.zeros(batch, CHANNELS, steps)
            part = StatePart(before[:, CHANNELS:], after[:, CHANNELS:], steps // 3, torch.zeros(batch), steps % 3 + 1)
            for layer in layers:
                convolve(x, layer, part, Ending(activation="elu"))


if __name__ == "__main__":
    products = Launches(product.product_kernel)
    product.product_kernel = products  # type: ignore[assignment]
    filters = Launches(depthwise.depthwise_kernel)
    depthwise.depthwise_kernel = filters  # type: ignore[assignment]
    layers = [nn.Conv1d(CHANNELS, CHANNELS, 7), nn.Conv1d(CHANNELS, CHANNELS, 7, groups=CHANNELS)]
    with torch.inference_mode():
        launch(layers)
    print("product_kernel", len(products.chosen_by))
    print("depthwise_kernel", len(filters.chosen_by))
