"""The train step and its parts: optimizer, state, sharding and checkpoints."""
