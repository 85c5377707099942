"""Threads for work on callers' audio and files. Texts are read in `stretto_client.markup.READING`."""

import os
import time

from stretto_client.turns import Turns

AUDIO = Turns(os.cpu_count() or 1, "audio")
FILES = Turns(4, "files", time.monotonic)  # a disk's time, too
