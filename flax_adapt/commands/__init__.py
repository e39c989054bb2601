"""The commands, a module each. Importing one imports only what that command needs.

`table` has their flags and their help. It imports no command, so that `flax-adapt --help`
does not import JAX.
"""
