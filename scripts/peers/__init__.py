"""The same models in other libraries, for the speed comparison of `scripts/benchmark.py`."""
