"""Tables, figures, and the templates of the report."""
