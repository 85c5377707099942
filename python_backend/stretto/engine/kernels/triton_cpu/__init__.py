"""Triton backend that lets vLLM import its kernels on hosts without a GPU; no kernel is compiled.

vLLM's Model Runner V2 starts only if Triton reports a backend. With TRITON_INTERPRET=1, kernels run in Triton's
interpreter, and `cpu_backend` replaces those that a step needs, so this backend's compiler is never called.
"""
