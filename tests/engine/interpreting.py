"""A faster Triton interpreter, without work that takes most of its time and changes no result."""

from dataclasses import replace
from types import FunctionType
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_patch = interpreter._patch_lang
_patched: dict[int, Any] = {}  # by the functions' modules, until the launch ends
_make_dtype = interpreter._get_np_dtype
_dtypes: dict[str, np.dtype] = {}  # by the names of Triton's types
_make_tensor = tl.tensor.__init__
_promote = TritonSemantic.binary_op_type_checking_impl
_ONE = tl.constexpr(1)
_KEPT = {id(each) for each in (tl.int32, tl.int64, tl.uint32, tl.float32)}  # which two scalars alike stay


class _Launch:
    """Patches that the interpreter undoes after a launch."""

    def restore(self) -> None:
        while _patched:
            _patched.popitem()[1].restore()  # the last first


def _patch_once(fn: FunctionType) -> _Launch:
    module = id(fn.__globals__)
    if module not in _patched:
        _patched[module] = _patch(fn)
    return _Launch()


def _dtype_of(dtype: tl.dtype) -> np.dtype:
    if dtype.name not in _dtypes:
        _dtypes[dtype.name] = _make_dtype(dtype)
    return _dtypes[dtype.name]


def _make_scalar_or_block(self: tl.tensor, handle: Any, type: tl.dtype) -> None:
    if type.is_block():
        _make_tensor(self, handle, type)
    else:
        self.handle, self.type, self.dtype, self.shape, self.numel = handle, type, type.scalar, (), _ONE


def _promote_unlike(self: TritonSemantic, lhs: Any, rhs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    kind = getattr(lhs, "type", None)
    if id(kind) in _KEPT and kind is getattr(rhs, "type", None):
        return lhs, rhs
    return _promote(self, lhs, rhs, *args, **kwargs)


def make_interpreter_quick() -> None:
    """Speed up Triton's interpreter.

    Patches the language once per module and launch instead of at each function call, and caches types. Drops the check
    for integer overflow, whose result is only used when debugging. Skips shape and type promotion of equal scalars.
    """
    options = interpreter.interpreter_builder.options
    assert not options.debug
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    interpreter._patch_lang, interpreter._get_np_dtype = _patch_once, _dtype_of
    tl.tensor.__init__, TritonSemantic.binary_op_type_checking_impl = _make_scalar_or_block, _promote_unlike
