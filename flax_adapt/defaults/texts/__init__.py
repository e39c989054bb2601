"""Parts that configs of texts alone have."""
