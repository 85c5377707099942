"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto.engine.kernels.gpu.step_draw import draw_streams_kernel
from stretto_fish_s2.mechanism.kernel import LateTemperatureProgram, Redraw
from tests.engine.kernels.gpu.kernel_cases import AUDIO, Case

# 4096 codes and an end on stream 0, as many codes on the others.
STREAM = {**AUDIO, "offset": None, "seen": None, "constants": Redraw(0.9)}
FIRST = {**STREAM, "num_columns": 4097, "num_ends": 1, "first_stream": 0, "block": 8192}
FIRST |= LateTemperatureProgram.sampling_functions._asdict()
OTHERS = {**STREAM, "num_columns": 4096, "num_ends": 0, "first_stream": 1, "block": 4096, "shares": True}
OTHERS |= LateTemperatureProgram.other_functions._asdict()

CASES: list[Case] = [
    (draw_streams_kernel, {}, FIRST, 16),
    (draw_streams_kernel, {}, OTHERS, 8),
]
