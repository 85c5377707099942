"""The code that the models of `model_repository/` (Triton `backend: "python"`) call.

`python_backend/` is this project's Python package; it is not NVIDIA's repository of that name.
Layers, each importing only from those below it (`tests/test_layers.py` holds the full table):

    L4  triton_io                        tensors in, tensors out
    L3  preprocessing  engine  decoder   before, in and after the language model
    L2  families  codec                  one file per published model family, one per codec
    L1  sampling, streams                pure torch: how codes lie in rows, how a row is drawn
    L0  config, errors
"""
