"""The benchmarks of `scripts/benchmark.py`, one file each: `run` prints tables, `measure` times a contender in its process."""
