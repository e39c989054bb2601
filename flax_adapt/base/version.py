"""The version of the package; setup.py reads this line, and nothing else repeats it."""

__version__ = "0.1.0"
