"""Texts: files, tokenizers, and how tokens become rows of a batch."""
