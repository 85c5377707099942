from types import SimpleNamespace

from triton import knobs

from benchmarks.gpu.parity import OURS, compiled


def test_compiled_kernels_are_recorded_and_the_previous_hook_still_runs() -> None:
    heard: list[str] = []
    former = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda fn, **kwargs: heard.append(fn.name)
    try:
        names: list[str] = []
        with compiled(names):
            kernel = SimpleNamespace(module=f"{OURS}engine.kernels.gpu.draw", name="_draw_kernel")
            knobs.runtime.jit_post_compile_hook(fn=kernel, key="", repr="")
        knobs.runtime.jit_post_compile_hook(fn=SimpleNamespace(module="later", name="other"))
    finally:
        knobs.runtime.jit_post_compile_hook = former
    assert names == ["stretto.engine.kernels.gpu.draw._draw_kernel"]
    assert heard == ["_draw_kernel", "other"]
