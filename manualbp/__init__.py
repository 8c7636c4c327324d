"""Deep learning with every backward pass written by hand, proved against autograd."""
