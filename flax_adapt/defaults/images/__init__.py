"""Parts that configs of images alone have."""
