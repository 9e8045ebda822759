"""Networks of MONAI beyond the study's seven: plans of the CUDA INT8 engine compute what the exported network does."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.cuda_int8.backend import planned
from MedQuantINT8Lib.engines.cuda_int8.reference.executor import ReferenceExecutor
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.models import onnx_graph as graph

pytest.importorskip("torch")
nets = pytest.importorskip("monai.networks.nets")
PATCH = (32, 16, 16)

#: Products with letters, gates of one channel, one channel many times, channels with zeros beside, projections, parametric activations.
MADE = {
    "unetr": lambda: nets.UNETR(1, 3, PATCH, feature_size=8, hidden_size=48, mlp_dim=96, num_heads=3),
    "attention_unet": lambda: nets.AttentionUnet(3, 1, 3, channels=(8, 16, 32), strides=(2, 2)),
    "vnet": lambda: nets.VNet(3, 1, 3),
    "highresnet": lambda: nets.HighResNet(3, 1, 3),
    "dynunet_residual": lambda: nets.DynUNet(
        3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32], res_block=True
    ),
    "unet_residual": lambda: nets.UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=2),
}


@pytest.mark.parametrize(
    "name", [name if name == "unet_residual" else pytest.param(name, marks=pytest.mark.slow) for name in MADE]
)
def test_a_plan_computes_what_the_network_does(name, tmp_path):
    import torch

    from MedQuantINT8Lib.importers.export import export_network

    torch.manual_seed(0)
    path = tmp_path / "network.onnx"
    export_network(MADE[name]().eval(), path, PATCH)
    plan = planned(path, BuildOptions("fp16", PATCH))
    x = np.random.default_rng(0).normal(size=(1, 1, *PATCH)).astype(np.float32)
    model = graph.fixed_shape(graph.load_network(path), PATCH)
    expected = session(model.SerializeToString(), "fp32").run(None, {model.graph.input[0].name: x})[0]
    found = ReferenceExecutor(plan).run(x)
    # FP16 between the layers, sums in float32.
    assert np.linalg.norm(found - expected) < 0.005 * np.linalg.norm(expected)
    assert not any(step.kind == "move" for step in plan.steps)
