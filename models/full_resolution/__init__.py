"""A network as a tree: from its modules to every pixel's class, exactly, on parts of an image."""
