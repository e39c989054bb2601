"""Addresses such as gs://bucket/a: weights, data and workdirs on an object store.

addresses  what an address is, and the names that a user sees of local copies
store      lists, reads and writes objects
copies     weights and data: read through copies in the user's cache folder
workdirs   a workdir: a local copy that is brought up to date, and written back
"""
