"""The code that the models of `model_repository/` (Triton `backend: "python"`) call.

`python_backend/` is this project's Python package; it is not NVIDIA's repository of that name.
Which folder holds what, and runs where: `docs/architecture.md`; who may import whom: `tests/test_layers.py`.
"""
