"""Print a grid, the state of each run and the time that remains: `python scripts/list.py profile=embedded`."""

from condlora.commands.list import main

if __name__ == "__main__":
    main()
