"""Workers on a cluster: pretended commands of SLURM for each case, and a real cluster where one can be started."""
