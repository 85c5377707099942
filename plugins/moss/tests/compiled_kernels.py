"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto.engine.kernels.gpu.step_draw import draw_streams_kernel
from stretto_moss.moss_tts.mechanism.kernel import SlotRules, slots_kernel
from stretto_moss.moss_tts_realtime.mechanism.draw import KernelConstants, RecentProgram
from tests.engine.kernels.gpu.kernel_cases import STREAMS, Case

RECENT = RecentProgram.other_functions._asdict() | {"constants": KernelConstants(50)}

CASES: list[Case] = [
    (draw_streams_kernel, {}, STREAMS | RECENT, 8),
    (slots_kernel, {}, {"rules": SlotRules(64, 32, 10, 151_656, 151_662, 151_653), "block": 32}, 1),
]
