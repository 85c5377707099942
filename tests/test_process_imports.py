"""No process of a server imports the large packages that it does not use: imports take most of the time of a start."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stretto.engine.environment import is_cpu_build
from tests.tiers import by_night

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "model_repository" / "language_model" / "1" / "checkpoint"

COMPILERS = "torch._dynamo torch._inductor torch.distributed.tensor torch.utils.cpp_extension sympy networkx"
DOWNLOADS = "huggingface_hub httpx aiohttp requests"
CLIENTS = "grpc tritonclient google.protobuf"
PARSERS = "openai fastapi mcp mistral_common xgrammar compressed_tensors ray"
MEDIA = "av cv2 scipy numba"
STUB = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from tests.fakes_triton import install
install()
from pathlib import Path
from stretto.family.plugin import family_at
checkpoint = Path({str(CHECKPOINT)!r})
"""


@dataclass(frozen=True, slots=True)
class Process:
    """Process of a server.

    Attributes:
        program: Python program that imports what the process has imported when it is ready.
        absent: Names of modules that it must not import.
    """

    program: str
    absent: str


PROCESSES = {
    "launcher": Process(
        "import stretto.launcher.command, stretto.launcher.workarounds",
        f"numpy pydantic torch vllm transformers {CLIENTS} {COMPILERS} {DOWNLOADS} {PARSERS} {MEDIA}",
    ),
    "proxy": Process(
        "import stretto.proxy.__main__",
        f"torch vllm transformers {COMPILERS} {DOWNLOADS} {PARSERS} {MEDIA}",
    ),
    "gateway": Process(
        "import stretto_gateway.command, uvloop",
        "torch vllm transformers huggingface_hub httpx requests openai mcp cv2 scipy numba cryptography c2pa"
        f" {COMPILERS}",
    ),
    "command-line client": Process(
        "import stretto.cli, stretto_client.__main__",
        f"torch vllm transformers cryptography {COMPILERS} {DOWNLOADS} {PARSERS} {MEDIA}",
    ),
    "preprocessor": Process(
        STUB
        + """
import stretto.preprocessing.audio_worker, stretto.preprocessing.hearing_worker, stretto.triton_io.preparing_service
from stretto.preprocessing.request import Preprocessor
Preprocessor(checkpoint)
""",
        f"vllm transformers {CLIENTS} {COMPILERS} {DOWNLOADS} {PARSERS} {MEDIA}",
    ),
    "language model": Process(
        STUB
        + """
import stretto.engine.llm, stretto.triton_io.speech_service, stretto.triton_io.tensors
from stretto.family.text import load_text_codec
load_text_codec(family_at(checkpoint), checkpoint)
""",
        f"torch vllm transformers {CLIENTS} {COMPILERS} {DOWNLOADS} {PARSERS} {MEDIA}",
    ),
    "acoustic decoder": Process(
        STUB
        + """
import stretto.triton_io.decoding_service
from stretto.config import DecoderConfig
from stretto.decoder.worker import open_codec
open_codec(DecoderConfig(codec="tiny"), checkpoint)
""",
        f"vllm transformers {CLIENTS} {COMPILERS} {DOWNLOADS} {PARSERS} {MEDIA}",
    ),
    "engine": Process(
        """
import importlib
from stretto.engine.environment import prepare_environment
from stretto.engine.preloading import WARM, lean_imports
prepare_environment()
with lean_imports():
    for name in WARM:
        importlib.import_module(name)
""",
        f"tritonclient aiohttp {COMPILERS} {PARSERS} {MEDIA}",
    ),
}


# Those that import most: torch or vLLM.
BY_NIGHT = ("preprocessor", "engine")


@pytest.mark.parametrize("name", [*(name for name in PROCESSES if name not in BY_NIGHT), *by_night(*BY_NIGHT)])
def test_process_imports_no_large_package_that_it_does_not_use(name: str) -> None:
    if name == "engine" and not is_cpu_build():
        pytest.skip("on a GPU, the compilers are not deferred")
    process = PROCESSES[name]
    absent = process.absent.split()
    program = f"{process.program}\nimport sys\nprint('imported', *set({absent!r}) & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1:] == ["imported"], done.stdout
