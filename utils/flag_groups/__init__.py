"""The flags that several programs share, each declared once in a group of what it is about.

A program's flags are one frozen dataclass put together from these, so that ``--learning_rate`` means the same and has
the same default wherever it appears. The names are ANCE's; ``tests/utils/test_flags.py`` holds them against the list of
all flags of ANCE and its fork. ``GROUP`` is the section of ``--help`` that a class's flags stand in, unless a flag
names another; what ``IGNORED`` names, and what has one value, stands at the end.
"""
