"""The optimizer, the train step, the pool of runs and their checkpoints."""
