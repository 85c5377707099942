"""Code called by the models of `model_repository/` (Triton `backend: "python"`).

`python_backend/` is this project's Python package, not NVIDIA's repository of that name. `docs/architecture.md` lists
the folders and the processes they run in; `tests/test_layers.py` defines their permitted imports.
"""
