"""What `python scripts/benchmark.py` measures: speed, memory and the cost of the analysis.

One module per subject; `measures.py` lists the measures and compares them with the limits in configs/benchmark.yaml.
Nothing in condlora/ or analysis/ imports from here.
"""
