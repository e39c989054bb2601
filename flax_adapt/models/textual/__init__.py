"""Parts that text models alone have."""
