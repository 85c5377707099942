"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from typing import Any

from stretto.engine.kernels.gpu.step_draw import draw_streams_kernel
from stretto_cosyvoice3.family import build
from stretto_cosyvoice3.mechanism.draw import CodeProgram
from stretto_cosyvoice3.mechanism.kernel import GroupRules, groups_kernel
from tests.engine.kernels.gpu.kernel_cases import FAMILY, PENALIZED, Case

DRAWING: Any = build(None).drawing
# 6561 codes and 200 ends.
GROUPS = {**PENALIZED, "seen": None, "num_columns": 6761, "num_ends": 200, "block": 8192}
GROUPS |= CodeProgram.sampling_functions._asdict() | {"constants": DRAWING.groups}
GROUP_RULES = GroupRules(DRAWING.groups, FAMILY, 64, 0, 10, 64, 1)

CASES: list[Case] = [
    (draw_streams_kernel, {}, {**GROUPS, "offset": None}, 16),
    (groups_kernel, {}, {"rules": GROUP_RULES}, 1),
]
