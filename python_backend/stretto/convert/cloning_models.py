"""Further ensembles of a model repository, for clients of other Triton servers that clone voices.

The ensembles have the steps and instances of the main ensemble, so every limit applies to both. They differ in the
names of the tensors: the preprocessor reads the inputs (`stretto.preprocessing.cloning_request`), and `pcm` is
`waveform`.
"""

from pathlib import Path

from stretto.family.base import Family

# Names of models that the published clients request (github.com/FunAudioLLM/CosyVoice, runtime/triton_trtllm), besides
# the family's own. Not `spark_tts`: of that model, the clients expect chunks that overlap by 0.1 s, at 16 kHz.
NAMES = ("f5_tts", "cosyvoice2", "cosyvoice2_dit")
CONFIG = """\
# `speech` with the tensors of clients that send the recording of a voice, its words and a text.
name: "{name}"
platform: "ensemble"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "reference_wav" data_type: TYPE_FP32 dims: [1, -1] optional: true }},
  {{ name: "reference_wav_len" data_type: TYPE_INT32 dims: [1, 1] optional: true }},
  {{ name: "reference_text" data_type: TYPE_STRING dims: [1, 1] optional: true }},
  {{ name: "target_text" data_type: TYPE_STRING dims: [1, 1] optional: true }}
]
output [ {{ name: "waveform" data_type: TYPE_FP32 dims: [-1] }} ]
ensemble_scheduling {{
  step [
    {{
      model_name: "preprocessor"
      model_version: -1
      input_map {{ key: "reference_wav" value: "reference_wav" }}
      input_map {{ key: "reference_wav_len" value: "reference_wav_len" }}
      input_map {{ key: "reference_text" value: "reference_text" }}
      input_map {{ key: "target_text" value: "target_text" }}
      output_map {{ key: "rows" value: "rows" }}
      output_map {{ key: "prompt" value: "prompt" }}
      output_map {{ key: "features" value: "features" }}
      output_map {{ key: "patches" value: "patches" }}
    }},
    {{
      model_name: "language_model"
      model_version: -1
      input_map {{ key: "rows" value: "rows" }}
      input_map {{ key: "prompt" value: "prompt" }}
      input_map {{ key: "features" value: "features" }}
      input_map {{ key: "patches" value: "patches" }}
      output_map {{ key: "codes" value: "codes" }}
      output_map {{ key: "chunk" value: "chunk" }}
    }},
    {{
      model_name: "acoustic_decoder"
      model_version: -1
      input_map {{ key: "codes" value: "codes" }}
      input_map {{ key: "chunk" value: "chunk" }}
      output_map {{ key: "pcm" value: "waveform" }}
    }}
  ]
}}
"""


def write_cloning_models(repository: Path, family: Family) -> None:
    """Add the ensembles to a model repository, if the family clones voices.

    Args:
        repository: Folder of the model repository.
        family: Family of the model.
    """
    if family.cloning_task is None:
        return
    for name in (family.name, *NAMES):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))
