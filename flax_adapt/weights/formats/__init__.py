"""Formats of weights: each is detected, read and written by a module."""
