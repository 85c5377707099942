"""Processes that are held at a chosen point, so that a test can end them there."""

import os
from pathlib import Path

MARK = "HELD_MARK"
HOOK = """
import os, re, sys, time
def hold(event, arguments, reached=[]):
    if event == os.environ["HELD_EVENT"] and not reached and re.search(os.environ["HELD_AT"], f"{arguments} ".translate(
        {ord(each): None for each in "()',"}
    )):
        reached.append(event)
        open(os.environ["HELD_MARK"], "w").close()
        while True:
            time.sleep(0.01)
sys.addaudithook(hold)
"""


def held_at(event: str, pattern: str, mark: Path) -> dict[str, str]:
    """Return environment variables that hold each Python process before an audit event.

    Args:
        event: Name of the event, such as `open`.
        pattern: Regular expression for the event's arguments, which are joined by spaces.
        mark: File that a held process creates. Its folder gets a module that Python imports at its start.
    """
    (mark.parent / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(mark.parent), os.environ.get("PYTHONPATH", "")])
    return {"HELD_EVENT": event, "HELD_AT": pattern, MARK: str(mark), "PYTHONPATH": path}
