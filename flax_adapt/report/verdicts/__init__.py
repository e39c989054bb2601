"""Did it help? The answer on top of a report, from all verdicts of a workdir."""
