"""Row 40 of the fault table: a process of several dies, and the training ends as if nothing had happened."""
import json
import os
import subprocess
import sys

import pytest
import torch.distributed as dist

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from pytorch_course.checkpoints import CheckpointManager, Checkpoints
from pytorch_course.distributed import all_reduce_mean, process_group, shard_dataloader
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Callback, Trainer

def main():
    folder, kill = Path(sys.argv[1]), sys.argv[2] == "kill"

    class Die(Callback):
        def after_batch(self, trainer):
            if kill and process.rank == 1 and trainer.steps == 8:
                os.kill(os.getpid(), 9)

    with process_group("cpu") as process:
        draw = torch.Generator().manual_seed(0)
        X, y = torch.randn(37, 4, generator=draw), torch.randint(2, (37,), generator=draw)
        torch.manual_seed(process.rank)
        model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2)))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        loader = shard_dataloader(DataLoader(TensorDataset(X, y), batch_size=8, shuffle=True), seed=42)
        checkpoints = Checkpoints(CheckpointManager(folder / "checkpoints", every_steps=1), resume=True)
        callbacks = [Die(), Reproducible(7), checkpoints]
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, progress=False)
        trainer.fit(3, loader)
        test_loader = DataLoader(TensorDataset(X[:23], y[:23]), batch_size=8)
        shard = shard_dataloader(test_loader, seed=None)  # 12 and 11 samples
        evaluator, count = Trainer(model.module, nn.CrossEntropyLoss()), len(shard.sampler)
        means = all_reduce_mean({name: mean * count for name, mean in evaluator.evaluate(shard).items()}, count)
        content = {"weights": [p.tolist() for p in model.parameters()], "steps": trainer.steps}
        content |= {"means": means, "complete": evaluator.evaluate(test_loader)}
        (folder / f"rank{process.rank}.json").write_text(json.dumps(content))

main()  # in a function, so that the wrapped model is gone before Python cleans up
"""


def torchrun(folder, kill):
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2"]
    line = [sys.executable, "-m", "torch.distributed.run", *options, str(folder / "script.py"), str(folder), kill]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (kill == "no"), done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)] if kill == "no" else None


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_row_40_a_killed_rank_ends_all_and_the_next_start_goes_on(tmp_path):
    "What `--max-restarts` does, too; but on one machine gloo does not always find its old address free for it."
    whole = torchrun(tmp_path / "whole", "no")
    torchrun(tmp_path / "killed", "kill")
    steps = [int(path.stem.removeprefix("step-")) for path in (tmp_path / "killed" / "checkpoints").glob("step-*.pt")]
    assert 7 <= max(steps) <= 8 and not (tmp_path / "killed" / "rank0.json").exists()
    assert torchrun(tmp_path / "killed", "no") == whole
    assert whole[0]["weights"] == whole[1]["weights"] and whole[0]["steps"] == 15
    for each in whole:
        assert each["means"] == pytest.approx(each["complete"], rel=1e-6)  # uneven shares, exact metrics
