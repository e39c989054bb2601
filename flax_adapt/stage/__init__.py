"""One stage of an experiment, from its checked config to its export."""
