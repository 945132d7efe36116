"""Optimizer state follows its weights wherever it is kept, or is refused before anything has moved."""

import pytest
import torch
from torch import nn, optim

from hf_srigl import SRigL, SRigLConfig, sparsify

CONFIG = SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=None, exclude_modules=["1"])


class InGroups(optim.SGD):
    """Keeps its momentum in param_groups, as GrokAdamW does."""

    def step(self, closure=None):
        for group in self.param_groups:
            kept = group.setdefault("state", {})
            for p in group["params"]:
                entry = kept.setdefault(p, {"step": 0, "average": torch.zeros_like(p)})
                entry["average"].lerp_(p.grad, 0.1)
                p.data.sub_(entry["average"], alpha=0.1)


class Keeps(optim.SGD):
    """SGD that also keeps what `make` gives for each weight, somewhere."""

    def __init__(self, parameters, put):
        super().__init__(parameters, lr=0.1)
        self.put = put

    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.put(self, p)


class Both(optim.Optimizer):
    """Two optimizers in one object, one for matrices and one for the rest."""

    def __init__(self, one, other):
        super().__init__([*one.param_groups, *other.param_groups], {})
        self.inner = (one, other)

    def step(self, closure=None):
        for one in self.inner:
            one.step()


class Float8(torch.Tensor):
    """A tensor subclass."""


def model():
    torch.manual_seed(0)
    return sparsify(nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 4)), CONFIG)


def run(sparse, optimizer, steps, after=None):
    srigl = SRigL(sparse, optimizer, total_steps=40)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sparse(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        before = sparse[0].mask(), after() if after else None
        if srigl.step() is not None and after:
            kept, old, new = before[0] & sparse[0].mask(), before[1], after()
            assert torch.equal(new[kept], old[kept])
            assert not new[~kept].any()
            return bool((before[0] != sparse[0].mask()).any())
    return False


def dense_of(layer, tensor):
    from hf_srigl.rule import topology

    return topology.scatter(tensor.detach().clone(), layer.indices, layer.active, layer.in_features)


def test_state_in_param_groups_moves():
    sparse = model()
    optimizer = InGroups(sparse.parameters(), lr=0.1)
    weight = sparse[0].weight
    assert run(sparse, optimizer, 4, lambda: dense_of(sparse[0], optimizer.param_groups[0]["state"][weight]["average"]))


def test_state_of_two_optimizers_in_one_object_moves():
    sparse = model()
    matrices = [p for p in sparse.parameters() if p.ndim == 2]
    adam = optim.AdamW([p for p in sparse.parameters() if p.ndim != 2], lr=0.01)
    both = Both(optim.Muon(matrices, lr=1e-3), adam)
    assert run(sparse, both, 4, lambda: dense_of(sparse[0], adam.state[sparse[0].weight]["exp_avg"]))


PLACES = {
    "a tuple": lambda o, p: o.state[p].update(pair=(torch.zeros_like(p), torch.zeros_like(p))),
    "a list": lambda o, p: o.state[p].update(history=[torch.zeros_like(p)]),
    "a nested dict": lambda o, p: o.state[p].update(buffers={0.9: torch.zeros_like(p)}),
    "the entry itself": lambda o, p: o.state.setdefault("reference", {}).update({p: p.detach().clone()}),
    "an attribute": lambda o, p: setattr(o, f"copy{p.numel()}", torch.zeros(p.numel())),
    "by name": lambda o, p: o.__dict__.setdefault("slow", {}).update({str(p.shape): p.detach().clone()}),
    "by id": lambda o, p: o.__dict__.setdefault("slow", {}).update({id(p): p.detach().clone()}),
    "integers": lambda o, p: o.state[p].update(codes=torch.zeros_like(p, dtype=torch.uint8)),
    "a subclass": lambda o, p: o.state[p].update(low=torch.zeros_like(p).as_subclass(Float8)),
    "blocks": lambda o, p: o.state[p].update(scales=torch.zeros(7)),
}


@pytest.mark.parametrize("place", PLACES)
def test_other_state_is_refused_at_the_first_step_and_nothing_has_moved(place):
    sparse = model()
    optimizer = Keeps(sparse.parameters(), PLACES[place])
    srigl = SRigL(sparse, optimizer, total_steps=40)
    sparse(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    old = {name: value.clone() for name, value in sparse.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"layer 0: Keeps keeps Keeps\..* only a plain float tensor in state.* use AdamW"
    ):
        srigl.step()
    assert all(torch.equal(value, old[name]) for name, value in sparse.state_dict().items())


def test_the_base_of_bitsandbytes_optimizers_is_no_8_bit_optimizer():
    base = type("Optimizer8bit", (optim.AdamW,), {})
    sparse = model()
    SRigL(sparse, type("Lion", (base,), {})(sparse.parameters()), total_steps=40)
    with pytest.raises(ValueError, match="Lion8bit cannot train a condensed model: its 8-bit or 4-bit state"):
        SRigL(sparse, type("Lion8bit", (base,), {})(sparse.parameters()), total_steps=40)
