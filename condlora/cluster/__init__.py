"""Workers on the nodes of a cluster. A worker is the command of training or of a search: claims divide runs and trials.

Belongs here: what is submitted, and how its end is seen from the run folders. Never: how a run is trained.
"""
