"""Where the hand-written and the autograd side meet. Only this package knows both."""
