"""How fast the parts are, beside the packages and loops that people would use otherwise: python -m benchmarks.NAME."""
