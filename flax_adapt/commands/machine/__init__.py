"""How a command sets up its machine: malloc, the compile cache, the precision of JAX."""
