"""An independent LLaDA in torch, float64, with a KV cache, and its decoding step: the oracle of the executor's tests."""

import torch


class TorchLlada:
    """One sequence without padding; weights by LLaDA's names."""

    def __init__(self, spec, tensors):
        self.spec = spec
        self.w = {
            k.removeprefix("model.transformer.").removesuffix(".weight"): torch.tensor(v, dtype=torch.float64)
            for k, v in tensors.items()
        }
        self.cache = {}

    def norm(self, x, name=None):
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.w[name] if name else None, self.spec.rms_eps)

    def gate(self, x):
        if self.spec.activation == "gelu_tanh":
            return torch.nn.functional.gelu(x, approximate="tanh")
        return torch.nn.functional.silu(x)

    def rotate_full(self, x, positions):
        """A head of a full layer: of its pairs (j, j + half) the first ones turn, by theta^(-2j / head_dim)."""
        full, half = self.spec.full_layers, x.shape[-1] // 2
        inverse = full.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        inverse = torch.where(torch.arange(half) < full.rotary_pairs, inverse, 0.0)
        z = torch.complex(x[..., :half], x[..., half:])
        z = z * torch.polar(torch.ones(()).double(), positions[:, None].double() * inverse)[:, None]
        return torch.cat([z.real, z.imag], -1)

    def rotate(self, x, positions):
        """x [tokens, heads, head_dim] as complex numbers (first half real, second half imaginary); channels behind the
        rotary ones stay."""
        x, kept = x[..., : self.spec.turned_channels], x[..., self.spec.turned_channels :]
        half = x.shape[-1] // 2
        z = torch.complex(x[..., :half], x[..., half:])
        inverse = stretched(self.spec.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half), self.spec)
        z = z * torch.polar(torch.ones(()).double(), positions[:, None].double() * inverse)[:, None]
        return torch.cat([z.real, z.imag, kept], -1)

    def forward(self, canvas, rows, keep, visible=None, windows=None, soft=None):
        """Logits of `rows` (a slice); with `keep` the keys and values of other rows stay as they were cached; `soft`: the soft
        token of each row, where the model is conditioned on them.

        A row sees the keys where `visible` [rows, keys] is true (None: all), in layers with a window those where `windows` is too.
        """
        tokens, spec = torch.tensor(canvas), self.spec
        positions = torch.arange(len(tokens))[rows]
        x = self.w["wte"][tokens[rows]] * spec.embedding_scale
        if soft is not None:
            told = self.gated(self.norm(soft, "self_conditioning.norm"), "self_conditioning")
            x = self.norm(x + told)
        for i in range(spec.layers):

            def linear(y, name, i=i):
                return torch.nn.functional.linear(y, self.w[f"blocks.{i}.{name}"])

            h = self.norm(x, f"blocks.{i}.attn_norm")
            if spec.qkv_bias:

                def linear(y, name, i=i):
                    return torch.nn.functional.linear(
                        y, self.w[f"blocks.{i}.{name}"], self.w.get(f"blocks.{i}.{name}.bias")
                    )

            full = spec.full_layers if spec.full_layers and (i + 1) % spec.full_layers.period == 0 else None
            kv_heads = full.kv_heads if full else spec.kv_heads
            q, k = (
                linear(h, "q_proj").unflatten(-1, (spec.heads, -1)),
                linear(h, "k_proj").unflatten(-1, (kv_heads, -1)),
            )
            v = k if full and full.shared_kv else linear(h, "v_proj").unflatten(-1, (kv_heads, -1))
            if spec.qk_norm:
                q, k = self.norm(q, f"blocks.{i}.q_norm"), self.norm(k, f"blocks.{i}.k_norm")
            rotate = self.rotate_full if full else self.rotate
            q, k = rotate(q, positions), rotate(k, positions)
            if spec.v_norm:
                v = self.norm(v)
            if keep:
                old_k, old_v = self.cache[i]
                k, v = old_k.index_copy(0, positions, k), old_v.index_copy(0, positions, v)
            self.cache[i] = (k, v)
            seen = visible
            if spec.window and not full and visible is None:  # a row sees as many keys on both sides
                apart = positions[:, None] - torch.arange(len(tokens))
                seen = apart.abs() < spec.window
            elif spec.window and not full:
                seen = visible & windows
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=seen,
                enable_gqa=spec.heads != kv_heads, scale=spec.attention_scale,
            )  # fmt: skip
            attended = linear(out.transpose(0, 1).flatten(1), "attn_out")
            x = x + (self.norm(attended, f"blocks.{i}.attn_post_norm") if spec.post_norms else attended)
            h = self.norm(x, f"blocks.{i}.ff_norm")
            mixed = spec.experts is not None and i >= spec.experts.first_layer
            if mixed and spec.experts.beside_ffn:  # the wiring of transformers' diffusion_gemma
                dense = self.norm(self.gated(h, f"blocks.{i}"), f"blocks.{i}.dense_post_norm")
                own = self.mixture(self.norm(x, f"blocks.{i}.experts_norm"), f"blocks.{i}", x, positions)
                h = dense + self.norm(own, f"blocks.{i}.experts_post_norm")
            else:
                h = self.mixture(h, f"blocks.{i}", x, positions) if mixed else self.gated(h, f"blocks.{i}")
            x = x + (self.norm(h, f"blocks.{i}.ff_post_norm") if spec.post_norms else h)
            if spec.layer_scales:
                x = x * self.w[f"blocks.{i}.layer_scale"]
        if (
            spec.shifted_logits and visible is None
        ):  # position i from row i - 1; the row before `rows` is as the last full pass left it
            if not keep:
                self.last = x
            x = torch.cat([self.last[positions[0] - 1 :][:1], x[:-1]])
        logits = torch.nn.functional.linear(
            self.norm(x, "ln_f"), self.w["wte" if self.spec.tied_embeddings else "ff_out"]
        )
        return logits if spec.logit_softcap is None else spec.logit_softcap * (logits / spec.logit_softcap).tanh()

    def gated(self, h, prefix):
        gate, up, down = (self.w[f"{prefix}.{part}"] for part in ("ff_proj", "up_proj", "ff_out"))
        return (self.gate(h @ gate.T) * (h @ up.T)) @ down.T

    def mixture(self, h, prefix, x, positions):
        """Token by token, as published: LLaDA-MoE, LLaDA2, LLaDA2.2, Qwen3-MoE; the router of DiffusionGemma reads the stream `x`."""
        experts, seen = self.spec.experts, h
        if experts.router_norm:
            seen = self.norm(x) * self.w[f"{prefix}.router.norm"] * self.spec.hidden**-0.5
        logits = seen @ self.w[f"{prefix}.router"].T
        scores = logits.softmax(-1) if experts.score == "softmax" else logits.sigmoid()
        result = self.gated(h, f"{prefix}.shared_experts") if experts.shared else torch.zeros_like(h)
        biased = scores + self.w[f"{prefix}.router.expert_bias"] if experts.bias else scores
        for token, row in enumerate(scores):
            rank = biased[token]
            if experts.block_capacity:  # of the experts that some token of its block wants most
                block = [
                    other for other, at in enumerate(positions)
                    if at // experts.block_tokens == positions[token] // experts.block_tokens
                ]  # fmt: skip
                wanted = biased[block].max(0).values.topk(experts.block_capacity).indices
                rank = torch.full_like(rank, -torch.inf).scatter(0, wanted, rank[wanted])
            groups = rank.unflatten(0, (experts.groups, -1))
            best = groups.topk(min(2, groups.shape[1]), -1).values.sum(-1).topk(experts.kept_groups).indices
            allowed = torch.full_like(groups, -torch.inf)
            allowed[best] = groups[best]
            taken = allowed.flatten().topk(experts.chosen).indices
            weight = row[taken] / row[taken].sum() if experts.normalised else row[taken]
            if experts.factors:
                weight = weight * self.w[f"{prefix}.router.factors"][taken]
            for each, share in zip(taken.tolist(), weight * experts.scale, strict=True):
                result[token] += share * self.gated(h[token], f"{prefix}.experts.{each}")
        return result

    def block_logits(self, canvas, start, length, step, cache):
        """Logits [L, vocab] of the block at `start` on a canvas, at a step of a cache policy."""
        first = 0 if step == 0 or cache == "none" else start
        last = start + length if first and cache == "dual" else len(canvas)
        logits = self.forward(canvas, slice(first, last), keep=bool(first))
        return logits[start - first : start - first + length]


def stretched(inverse, spec):
    """Inverse frequencies under the model's scaling, by the formulas of each method's authors."""
    scaling = spec.rope_scaling
    if scaling is None:
        return inverse
    context, slow = scaling.original_context, inverse / scaling.factor
    if scaling.kind == "llama3":
        wavelengths = 2 * torch.pi / inverse
        smooth = (context / wavelengths - scaling.low) / (scaling.high - scaling.low)
        between = (1 - smooth) * slow + smooth * inverse
        found = torch.where(wavelengths > context / scaling.low, slow, between)
        return torch.where(wavelengths < context / scaling.high, inverse, found)
    assert scaling.kind == "yarn"
    dims = 2 * len(inverse)
    rotations = torch.tensor([scaling.high, scaling.low], dtype=torch.float64)
    edges = dims * (context / (rotations * 2 * torch.pi)).log() / (2 * torch.tensor(spec.rope_theta).double().log())
    first, last = edges[0].floor().clamp(min=0), edges[1].ceil().clamp(max=dims - 1)
    ramp = ((torch.arange(len(inverse)) - first) / (last - first)).clamp(0, 1)
    return slow * ramp + inverse * (1 - ramp)


def decide(logits, masked, workload, step):
    """Tokens, confidences and committed positions of one step, from logits alone."""
    confidence, ids = logits.softmax(-1).max(-1)
    eligible = torch.tensor(masked)
    candidates = confidence.masked_fill(~eligible, -1.0)
    share, extra = divmod(workload.block_length, workload.steps_per_block)
    count = 1 if workload.commit == "threshold" else share + (step < extra)
    chosen = torch.zeros_like(eligible).scatter(0, candidates.topk(min(count, int(eligible.sum()))).indices, True)
    if workload.commit == "threshold":
        chosen |= confidence >= workload.threshold
    return ids, confidence, chosen & eligible
