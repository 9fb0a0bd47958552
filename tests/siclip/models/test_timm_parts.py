"""A training imports timm and torchvision, and nothing of torch's compiler before something is compiled."""

from __future__ import annotations

import json
import subprocess
import sys

NOT_NEEDED = ("torch._dynamo", "torch._inductor", "mlflow", "optuna", "pandas", "sklearn", "onnx")
TRAINING = f"""
import json, sys
import siclip_platform.training.ray_worker  # what a worker of Ray Train imports
import torch
from siclip.config import TrainingConfig
from siclip.training.optimizer import make_optimizer

weight = torch.nn.Parameter(torch.ones(2, 2))
optimizer = make_optimizer([("weight", weight)], TrainingConfig(steps=2, warmup_steps=1))
weight.grad = torch.ones(2, 2)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
before = [name for name in {NOT_NEEDED} if name in sys.modules]

import torchvision.ops.roi_align
from timm.models.naflexvit import NaFlexRopeIterator

# Its name in the package is a function of the same name.
deferred = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

compiled = torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(3))
print(json.dumps([before, deferred == is_compile_supported("cpu"), compiled.tolist(), len(graphs)]))
"""


def test_a_training_imports_no_compiler_and_one_imported_later_is_whole() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], True, [3.0, 3.0, 3.0], 1]
