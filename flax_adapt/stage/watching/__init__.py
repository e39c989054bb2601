"""A stage that watches a metric, keeps its best state and stops early."""
