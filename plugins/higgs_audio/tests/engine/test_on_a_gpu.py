"""All tensors of a step are on the device."""

import json
from pathlib import Path

import pytest

from plugins.higgs_audio.tests.small_families import HIGGS_AUDIO
from stretto.testing.checkpoints import write_checkpoint
from tests.engine.devices import assert_steps_stay_on_the_device
from tests.engine.harness import Engine

pytestmark = pytest.mark.engine


@pytest.mark.nightly
@pytest.mark.parametrize("uses_kernels", [True, False])
def test_steps_do_not_mix_devices(uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, HIGGS_AUDIO, "small_higgs_audio", layers=1)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"architectures": ["StrettoHiggsAudioForCausalLM"], "model_type": "llama"}))
    options = {"max_num_batched_tokens": 64, "additional_config": {"step_kernels": uses_kernels}}
    engine = Engine(tmp_path, max_num_seqs=4, load_format="dummy", **options)
    assert_steps_stay_on_the_device(engine, uses_kernels, monkeypatch)
