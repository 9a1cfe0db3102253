"""FSDP on two processes: one unit for the whole model works, a unit for each block is refused in a sentence."""

import json
import socket

import pytest
import torch
from peft import get_peft_model
from torch import nn

from condlora import CondLoraConfig

pytestmark = pytest.mark.slow


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.up(x))


def fsdp1(model, by_block):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    policy = ModuleWrapPolicy({Block}) if by_block else None
    return FullyShardedDataParallel(
        model, use_orig_params=True, auto_wrap_policy=policy, device_id=torch.device("cpu")
    )


def fsdp2(model, by_block):
    from torch.distributed.fsdp import fully_shard

    for block in model.base_model.model if by_block else ():
        fully_shard(block)
    return fully_shard(model)


def worker(rank, port, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    found = {}
    for wrap in (fsdp1, fsdp2):
        for by_block in (False, True):
            torch.manual_seed(0)
            config = CondLoraConfig(r=2, target_modules=["up"], init_weights=False)
            model = get_peft_model(nn.Sequential(Block(), Block(), Block()), config)
            x = torch.randn(4, 8)
            expected = model(x).detach()
            try:
                output = wrap(model, by_block)(x)
                output.sum().backward()
                found[f"{wrap.__name__} {by_block}"] = torch.equal(output.detach(), expected)
            except ValueError as error:
                found[f"{wrap.__name__} {by_block}"] = str(error)
            torch.distributed.barrier()
    if rank == 0:
        results.write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_maps_are_read_in_one_unit_and_refused_in_several(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, tmp_path / "found.json"), nprocs=2)
    found = json.loads((tmp_path / "found.json").read_text())
    for kind in ("fsdp1", "fsdp2"):
        assert found[f"{kind} False"] is True
        assert "sharded by FSDP or DeepSpeed ZeRO-3" in found[f"{kind} True"]
