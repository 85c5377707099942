"""Exclusion of imported objects from garbage collection in the test process.

vLLM collects garbage eight times while an engine starts and freezes all objects. It unfreezes them and collects twice
when the engine ends. That takes one or two seconds per engine in a process that has imported a whole suite. Here,
imported objects stay frozen, and an engine's own objects never are, so that they are freed with it.
"""

import gc
import sys

_freeze, _unfreeze = gc.freeze, gc.unfreeze
_MANY_MODULES = 100
_num_modules = -_MANY_MODULES  # modules imported at the last call of `set_aside`


def keep_to_ourselves() -> None:
    """Let only this module freeze or unfreeze objects from now on."""
    gc.freeze = gc.unfreeze = _do_nothing


def set_aside(collect: bool = True) -> None:
    """Exclude all existing objects from garbage collection if many modules were imported since the last call.

    Not at each call, because objects that are frozen while in use, such as another test's engine, are never freed.

    Args:
        collect: Collect garbage first, which takes three seconds after the imports of the whole suite. Garbage that
            was not collected is never freed.
    """
    global _num_modules
    if len(sys.modules) >= _num_modules + _MANY_MODULES:
        if collect:
            gc.collect()
        _freeze()
        _num_modules = len(sys.modules)


def take_back() -> None:
    """Unfreeze all objects and collect garbage now; objects may be frozen again later."""
    global _num_modules
    _num_modules = -_MANY_MODULES
    _unfreeze()
    gc.collect()


def _do_nothing() -> None:
    """Replace the functions that freeze and unfreeze."""
