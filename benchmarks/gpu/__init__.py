"""What a host with a GPU is asked at first contact: jobs, each in a process of its own (`jobs.py` lists them)."""
