"""What a method needs beyond its PEFT config: one small class per mechanism, all with the same hooks.

    changed_weights  starts that take something out of W and save the rest: PiSSA, OLoRA, MiLoRA, CorDA, LoftQ
    eva              a start from the inputs of training batches: EVA
    lora_drop        layers that share a pair, chosen by a first training: LoRA-drop
    rank_by_depth    ranks that grow from the first to the last layer, as in PRILoRA
    adalora          ranks pruned by a schedule: AdaLoRA, Conditional AdaLoRA
    quantised        a backbone in 4 bits: QLoRA
    bottleneck       adapters of two layers in the backbone: Houlsby, Pfeiffer, AdapterDrop
    combined         LoRA in the backbone under a method that adds tokens: LoRA + prompt tuning, LoRA + prefix tuning
    own_weights      weights of the backbone that are trained (full fine-tuning, BitFit), adapter weights that are not
                     (LoRA-FA)
    learning_rates   factors on the learning rate of some parameters: LoRA+, VB-LoRA, FourierFT
    random_parts     frozen random matrices that follow the run's seed: VeRA, RandLoRA, FourierFT, Uni-LoRA
    routed           an update that depends on the input and cannot be merged: Lily
    prompts          added tokens: prompt tuning, prefix tuning, P-tuning
    butterfly        BOFT's number of factors
    baseline         all mechanisms of one adapted model; `mechanisms_of` chooses them from the adapter's config

Keys of an adapter's file (configs/adapter) that ask for a mechanism:

    trained                regular expression: which of the backbone's own weights are trained
    last_layers            number of last layers that `trained` is restricted to
    bottleneck             size and places of bottleneck adapters
    inner                  PEFT's config of the layers that a combination puts into the backbone
    importance             part of the data, batch size, rate and threshold of LoRA-drop's first training
    rank_by_depth          ranks of the first and the last layer
    frozen                 regular expression: which of the adapter's weights are not trained
    learning_rate_factors  regular expression on a parameter's name -> factor on the learning rate
    start                  a start that PEFT does not have: milora
    examples               number of training examples that the start is computed from (CorDA)
    quantise               4-bit format of the backbone's linear layers: nf4
    schedule               pruning schedule as fractions of the run's steps
    requires               a package that is not among the requirements

Full fine-tuning, the head alone, BitFit and bottleneck adapters are PEFT models too: LoRA on no module, with weights of the backbone saved
under their own names in the adapter's file. So all methods have the same kind of model, folder and checkpoint.

What belongs here: mechanisms of published methods. What does not: the computation of A and B (`condlora.tuner`), and the
training loop, which calls the hooks of `Baseline` without knowing the method.
"""

from condlora.models.baselines.baseline import (
    Baseline,
    attach,
    baseline_of,
    is_one_product,
    prepare_base,
)
from condlora.models.baselines.mechanism import Batches
from condlora.models.baselines.quantised import check_requirements

__all__ = [
    "Baseline",
    "Batches",
    "attach",
    "baseline_of",
    "check_requirements",
    "is_one_product",
    "prepare_base",
]
