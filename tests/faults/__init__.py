"""Faults injected into real trainers, generators and warmups: processes killed, paused, duplicated and starved.

    python -m tests.faults [--full] [--row NAME] [--seed S]

The programs hold no hooks: a victim's process wraps the file operations of `os` and `open` (victim.py), and is forked
from a process that has imported everything once (fork_server.py), which makes hundreds of injections affordable.
"""
