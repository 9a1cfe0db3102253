"""Training of one run or several: the loop, the step, checkpoints, evaluation."""
