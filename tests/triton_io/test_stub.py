"""What a stub does to its process."""

import subprocess
import sys

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor

from stretto.triton_io.stub import give_back_large_memory

def private_kb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def work(_):
    held = []
    for _ in range(12):
        held.append(bytes(bytearray(19_000_000)))
    return [bytearray(1000) for _ in range(100)]

if sys.argv[1] == "true":
    give_back_large_memory()
before = private_kb()
with ThreadPoolExecutor(2) as pool:
    kept = list(pool.map(work, range(4)))
print(private_kb() - before)
"""


def test_memory_of_large_files_goes_back_to_the_system() -> None:
    grown = {}
    for gives_back in ("true", "false"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, gives_back], capture_output=True, text=True, check=True)
        grown[gives_back] = int(done.stdout)
    assert grown["true"] < 10_000 < grown["false"], grown
