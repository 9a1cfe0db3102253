"""Fine-tune one run or a grid: `python scripts/train.py task=rte adapter=lora` or `profile=embedded`."""

from condlora.commands.train import main

if __name__ == "__main__":
    main()
