"""Training of one run or several: from a config to a record.

    run           a run from its lease to its record, and the two entries `run` and `run_together`;  ending: how it ends
    loop          the driver: batches, steps, ends; a single run is a list of one
    step          one step of the optimizer, for one run or a group
    joint         gradients of several runs in one pass;  compatibility: which runs can share a pass
    optimizer     AdamW, alone and jointly
    setup         what a run trains: streams of random numbers, model, optimizer, batches;  data: its task, tokenised
    selection     validation during training: curve, best step, early stopping
    evaluation    predictions and scores
    state         what changes from step to step;  checkpoints: that state on disk
    signals, device, distributed, timing, bars

Which cells there are and in what order they run belongs to `condlora.grid`; what a model is made of to `condlora.models`.
"""
