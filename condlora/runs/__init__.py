"""The folder that a run leaves: recipe, record, lease, environment."""
