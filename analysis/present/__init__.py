"""Tables, figures, and the templates of the report."""

import os

# Before any module here imports matplotlib: a backend of the user's (a notebook's, say) may not exist here.
os.environ["MPLBACKEND"] = "Agg"
