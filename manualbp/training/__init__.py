"""The trainer around the hand-written passes: data, loop, early stopping, checkpoints, logs."""
