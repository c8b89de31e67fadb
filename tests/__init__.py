"""The tests, in folders as the packages that they are about."""

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
