"""Workers of a grid on the nodes of a cluster. A worker is the training command itself: claims divide the runs.

Belongs here: what is submitted, and how its end is seen from the run folders. Never: how a run is trained.
"""
