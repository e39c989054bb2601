"""Reading and writing the files that hold tensors, none of which can run code."""
