"""The train step and what it is made of: optimizer, state, sharding, checkpoints."""
