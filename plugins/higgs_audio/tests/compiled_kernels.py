"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto_higgs_audio.higgs_audio.mechanism.kernel import StairRules, stairs_kernel
from tests.engine.kernels.gpu.kernel_cases import Case

CASES: list[Case] = [(stairs_kernel, {}, {"rules": StairRules(64, 7, 10), "block": 8}, 1)]
