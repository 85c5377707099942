"""From a published release to a directory that vLLM loads: one module for each thing that is read or written."""
