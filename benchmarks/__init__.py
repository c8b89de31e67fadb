"""How fast the parts are, next to the packages and loops that people would use otherwise: python -m benchmarks.NAME."""
