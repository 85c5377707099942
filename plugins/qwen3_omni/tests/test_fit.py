"""Memory and time that `stretto run` counts for releases with and without the talker."""

from stretto.family.plugin import decoder_size
from stretto.machine.sizing import ENGINE_BYTES, cpu_cache_bytes
from stretto.releases import fit
from stretto.releases.catalogue import find
from stretto.releases.fit import GB, need, speed_line
from stretto_qwen3_omni.qwen3_omni_talker.family import TalkerVocabulary, qwen3_omni_talker


def test_need_includes_a_speaker_with_an_engine_and_the_codec() -> None:
    """The speaker's engine has a cache for all batch slots, as in a model repository."""
    whole = find("qwen3-omni")
    text_only = find("qwen3-omni-thinking")
    assert whole is not None
    assert text_only is not None
    talker = fit.speaker_of(whole)
    assert talker is not None
    assert fit.speaker_of(text_only) is None
    family = qwen3_omni_talker(TalkerVocabulary())
    shape = fit.backbone(talker)
    assert shape is not None
    for is_on_gpu, slots in ((True, 256), (False, 32)):
        found = need(whole, 70 * GB, is_on_gpu)
        alone = need(text_only, 63 * GB, is_on_gpu)
        cache = cpu_cache_bytes(family, family.max_model_len, 0, shape.kv_bytes, slots)
        assert found.cache - alone.cache == cache
        assert found.weights - alone.weights == (2 * shape.weights if is_on_gpu else 7 * GB)
        assert found.processes - alone.processes == (ENGINE_BYTES if is_on_gpu else 0)
    found = need(whole, 70 * GB, is_on_gpu=True)
    alone = need(text_only, 63 * GB, is_on_gpu=True)
    assert found.codec == decoder_size("qwen3_omni").gpu_bytes
    assert alone.codec < found.codec, "it has no codec"
    assert 90 * GB < found.total < 100 * GB
    assert alone.total < 80 * GB
    assert "codec" not in str(speed_line(text_only, 0, 1e10, 1e11))
    assert "codec" in str(speed_line(whole, 0, 1e10, 1e11))
