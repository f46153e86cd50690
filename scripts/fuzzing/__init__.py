"""Hostile files, and whether what reads them does only what it promises. `scripts/fuzz.py` runs it."""
