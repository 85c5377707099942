"""Deferred imports: modules of a library that are imported only when one of their objects is used.

A library may import modules whose objects it needs only in annotations or in rare cases. In a deferred module, every
name is a stand-in. The module is imported when a stand-in is called, subclassed, compared with an instance, or asked
for an attribute. Decorators that import modules can be deferred, too.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any, Union


class DeferredObject:
    """Stand-in for an object of a deferred module."""

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
        # no instance can exist of a class whose module is not imported
        return self._module in sys.modules and isinstance(instance, self._object())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._module in sys.modules and issubclass(subclass, self._object())

    def __or__(self, other: Any) -> Any:  # in an annotation
        return Union[Any, other]  # noqa: UP007

    __ror__ = __or__


class _DeferredModule(ModuleType):
    """Module with a stand-in for every name; after the `with` block, it returns the names of the real module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return DeferredObject(self.__name__, name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def deferred(names: Iterable[str]) -> Iterator[None]:
    """Defer imports of these modules in the `with` block, except those that are already imported."""
    stand_ins = {name: _DeferredModule(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Make imports of a module, which must not be imported yet, fail in the `with` block."""
    if name in sys.modules:
        raise RuntimeError(f"{name} was imported before it could be hidden")
    sys.modules[name] = None  # type: ignore[assignment]  # Python's mark of a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def deferred_decorators(
    owner: ModuleType, names: Iterable[str], prepare: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Apply decorators of `owner` that are used in the `with` block only at the decorated function's first call.

    `prepare` is called before a decorator is applied.
    """
    decorators = {name: getattr(owner, name) for name in names}
    for name, decorate in decorators.items():
        setattr(owner, name, _deferred_decorator(decorate, prepare))
    try:
        yield
    finally:
        for name, decorate in decorators.items():
            setattr(owner, name, decorate)


def _deferred_decorator(decorate: Callable[..., Any], prepare: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(decorate)
    def defer(function: Any = None, /, *arguments: Any, **options: Any) -> Any:
        if function is None:
            return lambda function: defer(function, *arguments, **options)
        if not isinstance(function, FunctionType):
            return decorate(function, *arguments, **options)

        @functools.cache
        def decorated() -> Any:
            prepare()
            return decorate(function, *arguments, **options)

        @functools.wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            return decorated()(*values, **named)

        return call

    return defer
