"""Reads and writes files of tensors; no file can run code."""
