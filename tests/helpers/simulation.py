"""SRigL the old way: dense tensors under masks, by the oracle. Shares no topology code with the package.

Runs on a deep copy of the model from *before* it was sparsified; masks are handed over once, at the start.
"""

import math

import oracle
import torch
from torch import nn


class MaskedDense:
    """Dense layers under masks, trained by any elementwise optimizer; `step` after each ``optimizer.step()``.

    Args:
        layers: name -> (dense module holding `weight`, mask (N, K), whether rows may be ablated).
        ramp: None, or (name -> fan-in at its end, the step that ends it); it starts at the masks' fan-in.
    """

    def __init__(
        self, layers, optimizer, *, total_steps, interval, alpha, stop, gamma_sal, zero_moments=True, ramp=None
    ):
        self.layers, self.optimizer = layers, optimizer
        self.masks = {name: mask.clone() for name, (_, mask, _) in layers.items()}
        self.k0 = {name: int(mask.sum(1).max()) for name, mask in self.masks.items()}
        self.total, self.interval, self.alpha, self.stop, self.gamma = total_steps, interval, alpha, stop, gamma_sal
        self.zero_moments, self.ramp = zero_moments, ramp  # ramp: (last fan-in of each layer by name, last step)
        self.t = 0
        self.dense_grads = {}
        with torch.no_grad():
            for name, (module, _, _) in layers.items():
                module.weight.mul_(self.masks[name])

    def before_optimizer(self):
        """Keep the dense gradients, let the optimizer see only the active positions."""
        for name, (module, _, _) in self.layers.items():
            self.dense_grads[name] = module.weight.grad.clone()
            module.weight.grad.mul_(self.masks[name])

    @torch.no_grad()
    def step(self):
        self.t += 1
        for name, (module, _, _) in self.layers.items():
            module.weight.mul_(self.masks[name])
        ends_ramp = self.ramp is not None and self.t == self.ramp[1]
        if (self.t % self.interval or self.t >= self.stop * self.total) and not ends_ramp:
            return
        p = self.alpha / 2 * (1 + math.cos(math.pi * self.t / (self.stop * self.total)))
        for name, (module, _, may_ablate) in self.layers.items():
            old = self.masks[name]
            gamma = self.gamma if may_ablate else None
            k0, trimmed = self.k0[name], old
            if self.ramp is not None:
                last, end = self.ramp[0][name], self.ramp[1]
                k0 = last + round((k0 - last) * max(0, 1 - self.t / end) ** 3)
                trimmed = trim(module.weight, old, k0 * old.shape[0] // int(old.any(1).sum()))
            new = oracle.update_mask(
                module.weight.double().tolist(),
                trimmed.tolist(),
                self.dense_grads[name].double().tolist(),
                budget=k0 * old.shape[0],
                drop_fraction=p,
                min_salient=None if gamma is None else max(1, math.floor(oracle.exact(gamma) * k0)),
            )
            new = torch.tensor(new)
            keep = old & new
            module.weight.mul_(keep)
            if self.zero_moments:
                for state in self.optimizer.state[module.weight].values():
                    if torch.is_tensor(state) and state.shape == old.shape:
                        state.mul_(keep)
            self.masks[name] = new


def trim(weight, mask, fan_in):
    """The `fan_in` largest of each row, by sorting it."""
    new = torch.zeros_like(mask)
    for n in range(mask.shape[0]):
        columns = [k for k in range(mask.shape[1]) if mask[n, k]]
        for k in sorted(columns, key=lambda k: (-abs(float(weight[n, k])), k))[:fan_in]:
            new[n, k] = True
    return new


def dense_twin(layer):
    """An nn.Linear with the weights of a CondensedLinear, built from its raw tensors with a Python loop."""
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=layer.weight.dtype)
    rows = [n for n in range(layer.out_features) if layer.active[n]]
    used = int((layer.indices >= 0).sum())
    fan_in = used // len(rows)
    mask = torch.zeros(layer.out_features, layer.in_features, dtype=torch.bool)
    with torch.no_grad():
        twin.weight.zero_()
        for slot in range(used):
            n, k = rows[slot // fan_in], int(layer.indices[slot])
            twin.weight[n, k] = layer.weight[slot]
            mask[n, k] = True
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin, mask
