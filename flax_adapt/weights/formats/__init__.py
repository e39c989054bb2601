"""The formats that weights come in: how each is found, read and written."""
