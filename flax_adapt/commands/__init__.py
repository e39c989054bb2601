"""The commands, a module each. Importing one imports only what that command needs.

`table` has their flags and their help, and imports none of them: `flax-adapt --help` does
not import JAX.
"""
