"""Training scripts of five published studies, made anew in miniature: their names, their loops, their files.

* Nanda et al. 2023, `neelnanda-io/Grokking`: one ``.pth`` with a list of state dicts, and losses at other distances.
* Park et al. 2024, `cfpark00/markov-mixtures`: ``ckpt_step=N.pth`` of a compiled module, the optimizer's files beside.
* Edelman et al. 2024, `EzraEdelman/Evolution-of-Statistical-Induction-Heads`: copies of the model in memory.
* Gopalani & Hu 2025, `pulkitgopalani/tf-loss-plateau`: ``.tar`` with the optimizer, one folder per version.
* Bietti et al. 2023, `albietz/transformer-birth`: SGD with momentum, frozen weights, no checkpoints.

Only names and formats are theirs; sizes are such that a core trains each in seconds.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]


def copied(module: nn.Module) -> State:
    """A copy of a module's state dict."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Grokking:
    """Addition modulo p by a transformer without normalisation: the test loss falls long after the training loss."""

    P, D, HEADS, MLP, EPOCHS, EVERY, TEST_EVERY = 23, 32, 4, 64, 300, 10, 5

    class Embed(nn.Module):
        def __init__(self, d_vocab: int, d_model: int):
            super().__init__()
            self.W_E = nn.Parameter(torch.randn(d_model, d_vocab) / d_model**0.5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.W_E.T[tokens]

    class PosEmbed(nn.Module):
        def __init__(self, n_ctx: int, d_model: int):
            super().__init__()
            self.W_pos = nn.Parameter(torch.randn(n_ctx, d_model) / d_model**0.5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.W_pos[: x.shape[1]]

    class Unembed(nn.Module):
        def __init__(self, d_vocab: int, d_model: int):
            super().__init__()
            self.W_U = nn.Parameter(torch.randn(d_model, d_vocab) / d_vocab**0.5)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.W_U

    class Attention(nn.Module):
        mask: Any

        def __init__(self, d_model: int, heads: int, n_ctx: int):
            super().__init__()
            d_head = d_model // heads
            self.W_K, self.W_Q, self.W_V = (
                nn.Parameter(torch.randn(heads, d_head, d_model) / d_model**0.5) for _ in range(3)
            )
            self.W_O = nn.Parameter(torch.randn(d_model, d_head * heads) / d_model**0.5)
            self.register_buffer("mask", torch.tril(torch.ones(n_ctx, n_ctx)))

        def forward(self, x: Tensor) -> Tensor:
            k, q, v = (torch.einsum("ihd,bpd->biph", weight, x) for weight in (self.W_K, self.W_Q, self.W_V))
            scores = torch.einsum("biqh,bikh->biqk", q, k) / self.W_K.shape[1] ** 0.5
            scores = scores.masked_fill(self.mask[: x.shape[1], : x.shape[1]] == 0, -1e10)
            z = torch.einsum("biqk,bikh->bqih", scores.softmax(-1), v).flatten(2)
            return z @ self.W_O.T

    class MLP_(nn.Module):
        def __init__(self, d_model: int, d_mlp: int):
            super().__init__()
            self.W_in = nn.Parameter(torch.randn(d_mlp, d_model) / d_model**0.5)
            self.b_in = nn.Parameter(torch.zeros(d_mlp))
            self.W_out = nn.Parameter(torch.randn(d_model, d_mlp) / d_model**0.5)
            self.b_out = nn.Parameter(torch.zeros(d_model))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.W_in.T + self.b_in).relu() @ self.W_out.T + self.b_out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Grokking.Attention(Grokking.D, Grokking.HEADS, 3)
            self.mlp = Grokking.MLP_(Grokking.D, Grokking.MLP)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(x)
            return x + self.mlp(x)

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = Grokking.Embed(Grokking.P + 1, Grokking.D)
            self.pos_embed = Grokking.PosEmbed(3, Grokking.D)
            self.blocks = nn.ModuleList([Grokking.Block()])
            self.unembed = Grokking.Unembed(Grokking.P + 1, Grokking.D)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.pos_embed(self.embed(tokens))
            for block in self.blocks:
                x = block(x)
            return self.unembed(x)

    @staticmethod
    def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens and sums for training, and for the test."""
        p = Grokking.P
        a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
        tokens, sums = torch.stack([a, b, torch.full_like(a, p)], 1), (a + b) % p
        order = torch.randperm(p * p, generator=torch.Generator().manual_seed(0))
        train, test = order[: int(0.75 * p * p)], order[int(0.75 * p * p) :]
        return tokens[train], sums[train], tokens[test], sums[test]

    @staticmethod
    def train(path: Path) -> None:
        """Writes the one file with all state dicts and the losses."""
        torch.manual_seed(0)
        model, (x, y, x_test, y_test) = Grokking.Transformer(), Grokking.data()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98))
        saved: dict[str, Any] = {"state_dicts": [], "epochs": [], "train_losses": [], "test_losses": []}
        for epoch in range(Grokking.EPOCHS):
            loss = functional.cross_entropy(model(x)[:, -1], y)
            saved["train_losses"].append(loss.item())
            if epoch % Grokking.TEST_EVERY == 0:
                with torch.no_grad():
                    saved["test_losses"].append(functional.cross_entropy(model(x_test)[:, -1], y_test).item())
            if epoch % Grokking.EVERY == 0:
                saved["state_dicts"].append(copied(model))
                saved["epochs"].append(epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save(saved | {"model": copied(model)}, path)


class Mixtures:
    """Sequences of a mixture of Markov chains, by a nanoGPT inside a wrapper that has been compiled."""

    STATES, CHAINS, LENGTH, D, STEPS = 4, 4, 32, 32, 236
    SAVED = (3, 4, 5, 6, 8, 10, 13, 17, 21, 27, 35, 44, 56, 71, 91, 115, 146, 186, 236)

    class SelfAttention(nn.Module):
        bias: Any

        def __init__(self) -> None:
            super().__init__()
            self.c_attn = nn.Linear(Mixtures.D, 3 * Mixtures.D)
            self.c_proj = nn.Linear(Mixtures.D, Mixtures.D)
            self.register_buffer("bias", torch.ones(Mixtures.LENGTH, Mixtures.LENGTH).tril()[None, None])

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
            scores = q @ k.mT / k.shape[-1] ** 0.5
            scores = scores.masked_fill(self.bias[..., : x.shape[1], : x.shape[1]] == 0, -torch.inf)
            return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc, self.gelu = nn.Linear(Mixtures.D, 4 * Mixtures.D), nn.GELU()
            self.c_proj = nn.Linear(4 * Mixtures.D, Mixtures.D)

        def forward(self, x: Tensor) -> Tensor:
            return self.c_proj(self.gelu(self.c_fc(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn = nn.LayerNorm(Mixtures.D), Mixtures.SelfAttention()
            self.ln_2, self.mlp = nn.LayerNorm(Mixtures.D), Mixtures.MLP()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class GPT(nn.Module):
        transformer: Any

        def __init__(self) -> None:
            super().__init__()
            d, states = Mixtures.D, Mixtures.STATES
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(states, d),
                    "wpe": nn.Embedding(Mixtures.LENGTH, d),
                    "h": nn.ModuleList([Mixtures.Block() for _ in range(2)]),
                    "ln_f": nn.LayerNorm(d),
                }
            )
            self.lm_head = nn.Linear(d, states, bias=False)
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.1)
            self.transformer["wte"].weight = self.lm_head.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.transformer["wte"](tokens) + self.transformer["wpe"].weight[: tokens.shape[1]]
            for block in self.transformer["h"]:
                x = block(x)
            return self.lm_head(self.transformer["ln_f"](x))

    class Transformer(nn.Module):
        """The wrapper, with the loss."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = Mixtures.GPT()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.transformer(tokens)

    @staticmethod
    def chains() -> Tensor:
        """The probabilities [chain, from, to] of all chains."""
        rows = torch.empty(Mixtures.CHAINS, Mixtures.STATES, Mixtures.STATES)
        rows = rows.exponential_(generator=torch.Generator().manual_seed(10**6)) ** 3
        return rows / rows.sum(-1, keepdim=True)

    @staticmethod
    def sample(count: int, seed: int) -> Tensor:
        """Sequences [count, length] of tokens, each of one of the chains."""
        g, ends = torch.Generator().manual_seed(seed), Mixtures.chains().cumsum(-1)
        chain = torch.randint(Mixtures.CHAINS, (count,), generator=g)
        tokens = [torch.randint(Mixtures.STATES, (count,), generator=g)]
        for draw in torch.rand(Mixtures.LENGTH - 1, count, 1, generator=g):
            tokens.append((draw > ends[chain, tokens[-1]]).sum(-1).clamp(max=Mixtures.STATES - 1))
        return torch.stack(tokens, 1)

    @staticmethod
    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    @staticmethod
    def train(folder: Path) -> dict[int, State]:
        """Writes ``checkpoints/ckpt_step=N.pth``, the optimizer's files, and logs.pth; returns the states by step."""
        torch.manual_seed(0)
        inner = Mixtures.Transformer()
        model: Any = torch.compile(inner, backend="eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)
        (folder / "checkpoints").mkdir(parents=True)
        states, logs = {}, {"online_losses": [], "val_losses": [], "save_steps": list(Mixtures.SAVED)}
        validation = Mixtures.sample(200, seed=-1)
        for step in range(1, Mixtures.STEPS + 1):
            loss = Mixtures.loss(model, Mixtures.sample(32, seed=step))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
            logs["online_losses"].append(loss.item())
            if step in Mixtures.SAVED:
                with torch.no_grad():
                    logs["val_losses"].append(Mixtures.loss(inner, validation).item())
                torch.save(model.state_dict(), folder / "checkpoints" / f"ckpt_step={step}.pth")
                torch.save(optimizer.state_dict(), folder / "checkpoints" / f"opt_ckpt_step={step}.pth")
                states[step] = copied(inner)
        torch.save(logs, folder / "logs.pth")
        return states


class InductionHeads:
    """Markov chains in context, by two layers of attention with relative positions; the loop keeps deep copies."""

    SYMBOLS, LENGTH, D, STEPS, KEPT = 3, 32, 32, 280, 35

    class Attention(nn.Module):
        bias: Any
        pos: Any

        def __init__(self) -> None:
            super().__init__()
            d, length = InductionHeads.D, InductionHeads.LENGTH
            self.Q, self.K, self.V, self.c_proj = (nn.Linear(d, d, bias=False) for _ in range(4))
            self.wpe = nn.Embedding(length + 1, d, padding_idx=length)
            self.attn_dropout, self.ln = nn.Dropout(0.1), nn.LayerNorm(d)
            self.register_buffer("bias", torch.ones(length, length).tril()[None, None])
            distance = torch.arange(length)[:, None] - torch.arange(length)
            self.register_buffer("pos", torch.where(distance < 0, length, distance))

        def forward(self, x: Tensor) -> Tensor:
            length, normed = x.shape[1], self.ln(x)
            q, k, v = self.Q(normed), self.K(normed), self.V(normed)
            scores = q @ k.mT + torch.einsum("qkd,bqd->bqk", self.wpe(self.pos[:length, :length]), q)
            scores = (scores / x.shape[-1] ** 0.5).masked_fill(self.bias[0, :, :length, :length] == 0, -torch.inf)
            return x + self.c_proj(self.attn_dropout(scores.softmax(-1)) @ v)

    class Attention_Only_Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(InductionHeads.SYMBOLS, InductionHeads.D)
            self.layers = nn.ModuleList([InductionHeads.Attention() for _ in range(2)])
            self.ln_f = nn.LayerNorm(InductionHeads.D)
            self.lm_head = nn.Linear(InductionHeads.D, InductionHeads.SYMBOLS, bias=False)
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.1)

        def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            x = self.wte(idx)
            for layer in self.layers:
                x = layer(x)
            logits = self.lm_head(self.ln_f(x))
            return logits, None if targets is None else functional.cross_entropy(logits.transpose(1, 2), targets)

    @staticmethod
    def sample(count: int, seed: int) -> Tensor:
        """Sequences [count, length + 1], each of a chain of its own, whose rows are far from uniform."""
        g, symbols = torch.Generator().manual_seed(seed), InductionHeads.SYMBOLS
        rows = torch.empty(count, symbols, symbols).exponential_(generator=g) ** 2
        rows = (rows / rows.sum(-1, keepdim=True)).cumsum(-1)
        tokens = [torch.randint(symbols, (count,), generator=g)]
        for draw in torch.rand(InductionHeads.LENGTH, count, 1, generator=g):
            tokens.append((draw > rows[torch.arange(count), tokens[-1]]).sum(-1).clamp(max=symbols - 1))
        return torch.stack(tokens, 1)

    @staticmethod
    def train(after: Callable[[int, nn.Module, float], None]) -> tuple[list[Any], list[float]]:
        """The copies of the model before the first update and after every so-manyth, and all losses.

        `after` is called with the number of updates, the model and the loss: that is where a recorder goes.
        """
        torch.manual_seed(0)
        model = InductionHeads.Attention_Only_Transformer()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
        model_history, train_loss = [deepcopy(model)], []
        for iter_num in range(1, InductionHeads.STEPS + 1):
            tokens = InductionHeads.sample(64, seed=iter_num)
            loss = model(tokens[:, :-1], tokens[:, 1:])[1]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            train_loss.append(loss.item())
            if iter_num % (InductionHeads.STEPS // InductionHeads.KEPT) == 0:
                model_history.append(deepcopy(model))
            after(iter_num, model, train_loss[-1])
        return model_history, train_loss


class Plateau:
    """Moving sums modulo p, by a transformer of one layer with linear attention: a plateau, then an abrupt fall."""

    P, NUMBERS, D, STEPS, EVERY = 11, 8, 64, 180, 10
    LENGTH = 2 * NUMBERS

    class CausalSelfAttention(nn.Module):
        bias: Any

        def __init__(self) -> None:
            super().__init__()
            self.k, self.q, self.v, self.c_proj = (nn.Linear(Plateau.D, Plateau.D) for _ in range(4))
            self.register_buffer("bias", torch.ones(Plateau.LENGTH + 1, Plateau.LENGTH + 1).tril()[None, None])

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            att = self.q(x) @ self.k(x).mT / x.shape[-1] ** 0.5
            att = att.masked_fill(self.bias[0, :, : x.shape[1], : x.shape[1]] == 0, 0.0)
            return self.c_proj(att @ self.v(x)), att.detach()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2 = (
                nn.LayerNorm(Plateau.D),
                Plateau.CausalSelfAttention(),
                nn.LayerNorm(Plateau.D),
            )
            self.mlp = nn.ModuleDict(
                {
                    "c_fc": nn.Linear(Plateau.D, 4 * Plateau.D),
                    "c_proj": nn.Linear(4 * Plateau.D, Plateau.D),
                    "act": nn.GELU("tanh"),
                }
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            change, att = self.attn(self.ln_1(x))
            x = x + change
            return x + self.mlp["c_proj"](self.mlp["act"](self.mlp["c_fc"](self.ln_2(x)))), att

    class GPTLinear(nn.Module):
        transformer: Any

        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(Plateau.P + 1, Plateau.D),
                    "wpe": nn.Embedding(Plateau.LENGTH + 1, Plateau.D),
                    "h": nn.ModuleList([Plateau.Block()]),
                    "ln_f": nn.LayerNorm(Plateau.D),
                }
            )
            self.lm_head = nn.Linear(Plateau.D, Plateau.P + 1, bias=False)
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.05)

        def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            x = self.transformer["wte"](idx) + self.transformer["wpe"].weight[: idx.shape[1]]
            x, attn_map = self.transformer["h"][0](x)
            x = self.transformer["ln_f"](x)
            logits = self.lm_head(x)
            loss = None if targets is None else functional.cross_entropy(logits.transpose(1, 2), targets)
            return attn_map, x.detach(), logits, loss

        @torch.no_grad()
        def generate(self, idx: Tensor, max_new_tokens: int) -> Tensor:
            for _ in range(max_new_tokens):
                idx = torch.cat([idx, self(idx)[2][:, -1:].argmax(-1)], 1)
            return idx

    @staticmethod
    def sample(count: int, seed: int) -> Tensor:
        """Numbers, a separator, and the sums of each with the one before."""
        numbers = torch.randint(1, Plateau.P, (count, Plateau.NUMBERS), generator=torch.Generator().manual_seed(seed))
        sums = numbers.clone()
        sums[:, 1:] = (numbers[:, 1:] + numbers[:, :-1]) % Plateau.P
        return torch.cat([numbers, torch.full((count, 1), Plateau.P), sums], 1)

    @staticmethod
    def test_accuracy(model: Any) -> float:
        """The share of sums that the model writes rightly."""
        data = Plateau.sample(64, seed=-1)
        written = model.generate(data[:, : Plateau.NUMBERS + 1], Plateau.NUMBERS)
        return (written[:, Plateau.NUMBERS + 1 :] == data[:, Plateau.NUMBERS + 1 :]).double().mean().item()

    @staticmethod
    def train(folder: Path) -> tuple[dict[int, State], list[float]]:
        """Writes mws.tar into a folder per version, as downloaded artifacts lie; returns states and losses."""
        torch.manual_seed(0)
        model = Plateau.GPTLinear()
        optim, states, losses = torch.optim.Adam(model.parameters(), lr=2e-3), {}, []
        for step in range(Plateau.STEPS):
            data = Plateau.sample(64, seed=step)
            loss = model(data[:, :-1], data[:, 1:])[3]
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.item())
            if step == 0 or (step + 1) % Plateau.EVERY == 0:
                version = folder / f"model_mws_step{step}-v0"
                version.mkdir(parents=True)
                content = {"epoch": step, "model": model.state_dict(), "optim": optim.state_dict()}
                numbers = {"train_loss": loss.detach(), "test_acc": Plateau.test_accuracy(model)}
                torch.save(content | numbers, version / "mws.tar")
                states[step] = copied(model)
        return states, losses


class Birth:
    """Bigrams with triggers whose followers must be found in the context, by two layers, most of them frozen."""

    TOKENS, TRIGGERS, LENGTH, D, STEPS = 20, 3, 32, 64, 140

    class Attention(nn.Module):
        def __init__(self, *, freeze_wo: bool):
            super().__init__()
            self.wq, self.wk = nn.Identity(), nn.Linear(Birth.D, Birth.D, bias=False)
            self.wv, self.wo = nn.Linear(Birth.D, Birth.D, bias=False), nn.Linear(Birth.D, Birth.D, bias=False)
            self.wv.weight.requires_grad_(False)
            self.wo.weight.requires_grad_(not freeze_wo)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.wq(x) @ self.wk(x).mT / x.shape[-1] ** 0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf).softmax(-1)
            return self.wo(scores @ self.wv(x)), scores

    class TransformerBlock(nn.Module):
        def __init__(self, *, freeze_wo: bool):
            super().__init__()
            self.attention = Birth.Attention(freeze_wo=freeze_wo)
            self.ff = nn.Linear(Birth.D, Birth.D, bias=False)

        def forward(self, x: Tensor, *, last: bool) -> Tensor:
            x = x + self.attention(x)[0]
            return x + self.ff(x) if last else x

    class Transformer(nn.Module):
        pe: Any
        layers: Any

        def __init__(self) -> None:
            super().__init__()
            self.tok_embeddings = nn.Embedding(Birth.TOKENS, Birth.D)
            self.register_buffer("pe", torch.randn(Birth.LENGTH, Birth.D))
            angles = torch.outer(torch.arange(Birth.LENGTH), 1e4 ** -torch.arange(0, 1, 2 / Birth.D)).float()
            self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))
            self.layers = nn.ModuleList([Birth.TransformerBlock(freeze_wo=index == 0) for index in range(2)])
            self.output = nn.Linear(Birth.D, Birth.TOKENS, bias=False)
            for frozen in (self.tok_embeddings, self.output, self.layers[0].ff):
                frozen.weight.requires_grad_(False)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.tok_embeddings(tokens) + self.pe[: tokens.shape[1]]
            for index, layer in enumerate(self.layers):
                x = layer(x, last=index == 1)
            return self.output(x)

    @staticmethod
    def sample(count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Sequences [count, length + 1], and where a trigger occurs again: [count, length].

        A sequence draws a follower of every trigger; other tokens are uniform.
        """
        g = torch.Generator().manual_seed(seed)
        follower = torch.randint(Birth.TRIGGERS, Birth.TOKENS, (count, Birth.TRIGGERS), generator=g)
        tokens = torch.randint(Birth.TOKENS, (count, Birth.LENGTH + 1), generator=g)
        again, seen = (
            torch.zeros(count, Birth.LENGTH, dtype=torch.bool),
            torch.zeros(count, Birth.TRIGGERS, dtype=torch.bool),
        )
        for position in range(Birth.LENGTH):
            now = tokens[:, position]
            rows = (now < Birth.TRIGGERS).nonzero()[:, 0]
            tokens[rows, position + 1] = follower[rows, now[rows]]
            again[rows, position] = seen[rows, now[rows]]
            seen[rows, now[rows]] = True
        return tokens, again

    @staticmethod
    def train(recorder_of: Callable[[nn.Module, torch.optim.Optimizer], Any]) -> tuple[nn.Module, list[float]]:
        """Trains with a recorder in the loop; the model and all losses."""
        torch.manual_seed(0)
        model = Birth.Transformer()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=1e-4, momentum=0.9)
        losses = []
        with recorder_of(model, optimizer) as recorder:
            for step in range(Birth.STEPS):
                tokens, again = Birth.sample(96, seed=step)
                loss = functional.cross_entropy(model(tokens[:, :-1])[again], tokens[:, 1:][again])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                recorder(step, loss=loss)
        return model, losses
