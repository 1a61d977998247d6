"""Functions on arrays and tensors; nothing here knows networks, files or Ray."""
