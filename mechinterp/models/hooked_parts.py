"""Parts of the hooked view that TransformerLens has not: the classifier, and what makes vectors of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.models.hooked_lens import HookPoint


class ClassifierLayer(nn.Module):
    """h = ReLU(x W + b), with x [batch, in] and W [in, width]."""

    def __init__(self, fan_in: int, width: int, dtype: torch.dtype):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(fan_in, width, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch fan_in"]) -> Float[Tensor, "batch width"]:
        pre = self.hook_pre(x @ self.W + self.b)
        return self.hook_post(torch.relu(pre))


class Readout(nn.Module):
    """logits = x W, with W [width, n_labels], or x W + b."""

    def __init__(self, fan_in: int, n_labels: int, dtype: torch.dtype, bias: bool):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(fan_in, n_labels, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(n_labels, dtype=dtype)) if bias else None

    def forward(self, x: Float[Tensor, "batch fan_in"]) -> Float[Tensor, "batch n_labels"]:
        logits = x @ self.W
        return logits if self.b is None else logits + self.b


class ScaleAndShift(nn.Module):
    """x w + b, elementwise: what LayerNorm does to tokens that are normalised already."""

    def __init__(self, d_model: int, dtype: torch.dtype):
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(d_model, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return x * self.w + self.b


class Classifier(nn.Module):
    """ReLU layers and a linear readout, from the target's residual stream to logits."""

    def __init__(self, d_model: int, width: int, depth: int, n_labels: int, dtype: torch.dtype, bias: bool):
        super().__init__()
        fans = [d_model] + [width] * depth
        self.hook_in = HookPoint()
        self.layers = nn.ModuleList(ClassifierLayer(fan_in, width, dtype) for fan_in in fans[:-1])
        self.readout = Readout(fans[-1], n_labels, dtype, bias)
        self.hook_logits = HookPoint()

    def forward(self, residual: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_labels"]:
        x = self.hook_in(residual)
        for layer in self.layers:
            x = layer(x)
        return self.hook_logits(self.readout(x))


class InputMap(nn.Module):
    """x W_E + b_E: the residual stream from vectors, by a trained map."""

    def __init__(self, d_token: int, d_model: int, dtype: torch.dtype):
        super().__init__()
        self.W_E = nn.Parameter(torch.zeros(d_token, d_model, dtype=dtype))
        self.b_E = nn.Parameter(torch.zeros(d_model, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch pos d_token"]) -> Float[Tensor, "batch pos d_model"]:
        return x @ self.W_E + self.b_E
