"""Parts of `experiment.measure`: draws of labels, answers of frozen features, verdicts."""
