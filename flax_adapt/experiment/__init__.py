"""An experiment: its stages in order, and what they were worth."""
