"""Toys: one file each, which registers something at a seam and starts a program that knows nothing of it.

python -m tests.toys.NAME drivers.run_ann FLAGS…
"""
