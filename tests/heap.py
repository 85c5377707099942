"""What the tests' own process looks through for garbage: not all that it has imported, again and again.

vLLM collects garbage eight times while an engine starts, sets aside all that is there, and takes all of it back and
looks through it twice when the engine ends: a second of two for each engine, in a process that has imported a whole
suite. Here, what has been imported stays aside, and an engine's own objects never are, so that they go with it.
"""

import gc
import sys

_freeze, _unfreeze = gc.freeze, gc.unfreeze
_MANY_MODULES = 100
_num_modules = -_MANY_MODULES  # that had been imported when all was last set aside


def keep_to_ourselves() -> None:
    """From now on only this module sets anything aside, or takes it back."""
    gc.freeze = gc.unfreeze = _do_nothing


def set_aside() -> None:
    """What is here now is not looked through any more, where many modules have been imported since the last time.

    Not each time: what is set aside while it is in use, such as an engine of another test, never goes.
    """
    global _num_modules
    if len(sys.modules) >= _num_modules + _MANY_MODULES:
        gc.collect()
        _freeze()
        _num_modules = len(sys.modules)


def take_back() -> None:
    """All that is here is looked through, now, and may be set aside again."""
    global _num_modules
    _num_modules = -_MANY_MODULES
    _unfreeze()
    gc.collect()


def _do_nothing() -> None:
    """In the place of what sets aside, or takes back."""
