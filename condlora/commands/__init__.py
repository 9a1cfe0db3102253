"""What scripts/ and the console scripts call."""
