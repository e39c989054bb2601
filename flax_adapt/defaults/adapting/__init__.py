"""The config `adapt`: its recipe, the data that it reads, and its sizes."""
