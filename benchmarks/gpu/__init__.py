"""What `benchmarks/gpu/check.sh` runs: sections, each in a process and a time of its own (`sections.py` lists them)."""
