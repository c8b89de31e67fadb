"""What a user names by a word: strategies, filters, losses, model types, text profiles, each declared once.

Metrics are declared in utils/ir/metrics.py. Nothing here imports more than the standard library: ``--help`` reads it.
"""
