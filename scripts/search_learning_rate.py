"""Choose each task's and method's learning rate on validation: `python scripts/search_learning_rate.py profile=...`."""

from condlora.commands.search_learning_rate import main

if __name__ == "__main__":
    main()
