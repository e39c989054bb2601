"""Commands that measure what was trained."""
