"""CondLoRA adapters on disk: saving, loading, export to LoRA, import, model card."""
