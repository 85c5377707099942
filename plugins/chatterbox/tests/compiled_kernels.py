"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto.engine.kernels.gpu.step_draw import draw_streams_kernel
from stretto_chatterbox.mechanism.draw import LateProgram
from tests.engine.kernels.gpu.kernel_cases import PENALIZED, Case

CASES: list[Case] = [(draw_streams_kernel, {}, PENALIZED | LateProgram.sampling_functions._asdict(), 8)]
