"""A Triton backend for hosts without a GPU: it lets vLLM import its kernels there and compiles none of them.

vLLM's Model Runner V2 starts only where Triton names a backend. With TRITON_INTERPRET=1 kernels run in Triton's
interpreter, and `engine/kernels/cpu` stands in for those that a step needs; nothing ever reaches this compiler.
"""
