"""Deferred imports: modules of a library that are imported only when one of their objects is used.

A library may import modules at its top whose objects it only names, for example in annotations, or uses in few cases. A
deferred module has a stand-in for each of its names. It is imported when an object is called, subclassed, compared
with an instance, or asked for an attribute; the stand-in then does what the object does.
"""

import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Union


class DeferredObject:
    """Stand-in for an object of a deferred module.

    Args:
        module: Name of the module.
        name: Name of the object in it.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def _object(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._object()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._object(),)

    def __instancecheck__(self, instance: object) -> bool:
        # nobody has made an instance of a class whose module is not imported
        return self._module in sys.modules and isinstance(instance, self._object())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._module in sys.modules and issubclass(subclass, self._object())

    def __or__(self, other: Any) -> Any:  # in an annotation
        return Union[Any, other]  # noqa: UP007

    __ror__ = __or__


class _DeferredModule(ModuleType):
    """Module with a stand-in for every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return DeferredObject(self.__name__, name)


@contextmanager
def deferred(names: Iterable[str]) -> Iterator[None]:
    """Defer modules while others are imported in the `with` block; a module that is already imported stays.

    Args:
        names: Full names of the modules.
    """
    stand_ins = {name: _DeferredModule(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
