"""Write a CondLoRA adapter as a plain LoRA adapter: `python scripts/export_lora.py my-adapter my-lora`."""

from condlora.commands.export_lora import main

if __name__ == "__main__":
    main()
