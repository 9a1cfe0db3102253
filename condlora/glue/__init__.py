"""Tasks and their text: where it comes from, how it is split, tokenised and scored."""
