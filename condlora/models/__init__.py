"""Backbones, heads, packing, and every adapter that can be attached to a backbone."""
