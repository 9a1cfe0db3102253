"""Submit workers for a grid to a cluster: `python scripts/submit.py slurm profile=paper cluster.partition=gpu`."""

from condlora.commands.submit import main

if __name__ == "__main__":
    main()
