"""The twins of the layers, one file a family, each with its CASES."""
