"""The foundation of every package: types, errors, configs, logs, metrics."""
