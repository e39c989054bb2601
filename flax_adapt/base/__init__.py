"""What every package builds on: types, errors, configs, logs, metrics."""
