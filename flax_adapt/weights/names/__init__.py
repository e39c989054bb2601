"""What the formats call each parameter, and how its values are laid out."""
