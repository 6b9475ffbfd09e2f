"""Measurements of a real stack on this machine. `python -m bench --help`."""
