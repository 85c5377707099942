"""Arguments of this plug-in's kernels, to compile them for a GPU."""

from stretto_kyutai.kyutai_tts.mechanism.cross_attention import cross_attention_kernel
from stretto_kyutai.kyutai_tts.mechanism.kernel import WordRules, words_kernel
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript
from tests.engine.kernels.gpu.kernel_cases import Case

CROSS = {**dict.fromkeys(("attended", "query", "keys", "values"), "*bf16"), "query_stride": "i32", "absent": "i32"}
# Kyutai's 1.6B, with a second text stream.
SPEAKERS = {"num_heads": 16, "num_vectors": 625, "head_dim": 128, "block_vectors": 32, "block_dims": 128}
WORDS = WordRules(**dict.fromkeys(WordRules._fields, 3))._replace(script=WordScript(ahead=3))
AHEAD = {"rules": WORDS}
PLAIN = {"rules": WORDS._replace(script=WordScript()), "seconds": None}

CASES: list[Case] = [
    (cross_attention_kernel, CROSS, SPEAKERS, 4),
    (words_kernel, {}, AHEAD, 1),
    (words_kernel, {}, PLAIN, 1),
]
