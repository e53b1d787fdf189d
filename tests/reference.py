"""MedST a second time: slow, obvious, float64, written from the equations that come with the golden numbers.

It shares no code with the product: explicit loops over pairs, heads and queries, and no masks (what is absent is
not there). Weights are a mapping under the names of the released checkpoint. It is checked against the golden
numbers, and the product is checked against it.

Legend: B pairs, P patches of one image, M patches of a pair, N words, D width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def layer_norm(x: Tensor, weights: Weights, name: str, epsilon: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    weight = weights[f"{name}.weight"]
    if weight.ndim == 3:
        weight = weight[:, :, 0]
    return x @ weight.T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def unit(x: Tensor) -> Tensor:
    return x / torch.clamp(torch.sqrt((x**2).sum(dim=-1, keepdim=True)), min=1e-12)


def softmax(x: Tensor) -> Tensor:
    exponential = torch.exp(x - x.max())
    return exponential / exponential.sum()


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """(Q, D), (K, D), (K, D) -> attended (Q, D) and the attention, mean of the heads, (Q, K)."""
    width = query.shape[1] // num_heads
    outputs, weights = [], []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for vector in query[:, part]:
            rows.append(softmax(key[:, part] @ vector / math.sqrt(width)))
        weights.append(torch.stack(rows))
        outputs.append(weights[-1] @ value[:, part])
    return torch.cat(outputs, dim=1), sum(weights) / num_heads


# Images -----------------------------------------------------------------------------------------------------------


def patch_vectors(weights: Weights, image: Tensor) -> Tensor:
    """(C, side, side) -> (P, D), row by row of the grid."""
    kernel = weights["img_encoder_q.model.patch_embed.proj.weight"]
    side = kernel.shape[-1]
    vectors = []
    for top in range(0, image.shape[1], side):
        for left in range(0, image.shape[2], side):
            patch = image[:, top : top + side, left : left + side]
            vectors.append((kernel * patch).sum(dim=(1, 2, 3)))
    return torch.stack(vectors) + weights["img_encoder_q.model.patch_embed.proj.bias"]


def vision_tokens(
    weights: Weights, image: Tensor, lateral: Tensor | None, num_heads: int, *, view: str = "frontal",
    lateral_is_key: bool = True,
) -> Tensor:
    """One pair -> all its tokens after the last norm, (1 + P, D) or (1 + 2 P, D).

    `view` is that of `image`; a lateral that is no key is computed but not attended to.
    """
    name = "img_encoder_q.model"
    positions = weights[f"{name}.pos_embed"][0]
    tokens = torch.cat([weights[f"{name}.cls_token"][0], patch_vectors(weights, image)]) + positions
    num_frontal = len(tokens)
    if lateral is not None:
        tokens = torch.cat([tokens, patch_vectors(weights, lateral) + positions[1:]])
    num_keys = len(tokens) if lateral_is_key else num_frontal
    num_blocks = sum(key.startswith(f"{name}.blocks.") and key.endswith(".norm1.weight") for key in weights)
    width = tokens.shape[1]
    for index in range(num_blocks):
        block = f"{name}.blocks.{index}"
        projected = linear(layer_norm(tokens, weights, f"{block}.norm1", 1e-6), weights, f"{block}.attn.qkv")
        query, key, value = projected[:, :width], projected[:, width : 2 * width], projected[:, 2 * width :]
        attended, _ = attend(query, key[:num_keys], value[:num_keys], num_heads)
        tokens = tokens + linear(attended, weights, f"{block}.attn.proj")
        outputs = []
        for place, token in enumerate(tokens):
            suffix = "_l" if place >= num_frontal or view == "lateral" else ""
            hidden = linear(layer_norm(token, weights, f"{block}.norm2{suffix}", 1e-6), weights,
                            f"{block}.mlp{suffix}.fc1")
            outputs.append(linear(gelu(hidden), weights, f"{block}.mlp{suffix}.fc2"))
        tokens = tokens + torch.stack(outputs)
    return layer_norm(tokens, weights, f"{name}.norm", 1e-6)


# Text -------------------------------------------------------------------------------------------------------------


def text_tokens(
    weights: Weights, ids: Sequence[int], num_heads: int, *, true_positions: bool
) -> tuple[Tensor, Tensor]:
    """The tokens of one caption, padding excluded -> last-layer vectors (W, D), last-layer attention of [CLS] (W,)."""
    name = "text_encoder_q.model"
    positions = torch.arange(len(ids)) if true_positions else torch.zeros(len(ids), dtype=torch.int64)
    x = weights[f"{name}.embeddings.word_embeddings.weight"][torch.tensor(ids)]
    x = x + weights[f"{name}.embeddings.position_embeddings.weight"][positions]
    if true_positions and f"{name}.embeddings.token_type_embeddings.weight" in weights:
        x = x + weights[f"{name}.embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, weights, f"{name}.embeddings.LayerNorm", 1e-12)
    num_layers = sum(key.startswith(f"{name}.encoder.layer.") and key.endswith(".intermediate.dense.weight")
                     for key in weights)
    attention = torch.empty(0)
    for index in range(num_layers):
        layer = f"{name}.encoder.layer.{index}"
        query, key, value = (linear(x, weights, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        attended, attention = attend(query, key, value, num_heads)
        attended = linear(attended, weights, f"{layer}.attention.output.dense")
        x = layer_norm(x + attended, weights, f"{layer}.attention.output.LayerNorm", 1e-12)
        hidden = gelu(linear(x, weights, f"{layer}.intermediate.dense"))
        x = layer_norm(x + linear(hidden, weights, f"{layer}.output.dense"), weights, f"{layer}.output.LayerNorm",
                       1e-12)
    return x, attention[0]


def words_of(ids: Sequence[int], vocabulary: Sequence[str], *, released: bool) -> tuple[list[str], list[list[int]]]:
    """Strings of the words of one caption of T positions, and the positions of the tokens of each.

    As released, a word is written down only when the next one begins, and the last position is not visited.
    """
    words: list[str] = []
    members: list[list[int]] = []
    open_word, open_members = "", []
    for position in range(len(ids) - 1 if released else len(ids)):
        piece = vocabulary[ids[position]]
        if piece.startswith("##") and open_members:
            open_word += piece[2:]
            open_members.append(position)
            continue
        if open_members:
            words.append(open_word)
            members.append(open_members)
        open_word, open_members = piece, [position]
        if piece == "[SEP]":
            words.append(piece)
            members.append([position])
            return words, members
    if not released:
        words.append(open_word)
        members.append(open_members)
    return words, members


def word_vectors(tokens: Tensor, members: Sequence[Sequence[int]], num_slots: int) -> Tensor:
    """(W, D) -> (num_slots, D): the sum of each word's tokens, then zeros."""
    rows = [sum(tokens[position] for position in word) for word in members]
    rows += [torch.zeros_like(tokens[0])] * (num_slots - len(rows))
    return torch.stack(rows)


# Heads ------------------------------------------------------------------------------------------------------------


@dataclass
class Statistics:
    """Running statistics after one forward in training mode, by released name."""

    after: dict[str, Tensor] = field(default_factory=dict)


def head(weights: Weights, name: str, x: Tensor, training: bool, statistics: Statistics) -> Tensor:
    """(K, D) -> unit vectors (K, E)."""
    x = linear(x, weights, f"{name}.head.0")
    x = batch_norm(weights, f"{name}.head.1", x, training, statistics)
    x = x * weights[f"{name}.head.1.weight"] + weights[f"{name}.head.1.bias"]
    x = linear(torch.clamp(x, min=0), weights, f"{name}.head.3")
    return unit(batch_norm(weights, f"{name}.head.4", x, training, statistics))


def batch_norm(weights: Weights, name: str, x: Tensor, training: bool, statistics: Statistics) -> Tensor:
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    if training:
        count = len(x)
        batch_mean = x.sum(dim=0) / count
        batch_variance = ((x - batch_mean) ** 2).sum(dim=0) / count
        unbiased = batch_variance * count / (count - 1)
        statistics.after[f"{name}.running_mean"] = 0.9 * mean + 0.1 * batch_mean.detach()
        statistics.after[f"{name}.running_var"] = 0.9 * variance + 0.1 * unbiased.detach()
        mean, variance = batch_mean, batch_variance
    return (x - mean) / torch.sqrt(variance + 1e-5)


# Losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(scores: Tensor, target: int) -> Tensor:
    largest = scores.max()
    return largest + torch.log(torch.exp(scores - largest).sum()) - scores[target]


def global_loss(image: Tensor, report: Tensor, temperature: float, study: Sequence[int] | None = None) -> Tensor:
    """Equation 1; with `study`, other pairs of the same study are left out of the sums."""
    num_pairs = len(image)
    total = torch.zeros((), dtype=image.dtype)
    for i in range(num_pairs):
        others = [j for j in range(num_pairs) if study is None or j == i or study[j] != study[i]]
        own = others.index(i)
        total = total + cross_entropy(torch.stack([image[i] @ report[j] / temperature for j in others]), own)
        total = total + cross_entropy(torch.stack([image[j] @ report[i] / temperature for j in others]), own)
    return total / num_pairs


def accuracy(image: Tensor, report: Tensor, rank: int) -> float:
    scores = image @ report.T
    hits = 0
    for i in range(len(image)):
        hits += int((scores[i] > scores[i, i]).sum() < rank)
        hits += int((scores[:, i] > scores[i, i]).sum() < rank)
    return 100.0 * hits / (2 * len(image))


def alignment_of_pair(
    queries: Tensor, keys: Tensor, temperature: float, pooling: tuple[Tensor, Tensor] | None, *, unit_context: bool
) -> tuple[Tensor, Tensor]:
    """One direction of one pair: the sum of equation 2 over j (with its 1/2), and omega."""
    num_queries, width = queries.shape
    contexts = torch.stack([softmax(keys @ query / temperature) @ keys for query in queries])
    if unit_context:
        contexts = unit(contexts)
    fused = unit(queries * contexts)
    if pooling is None:
        omega = torch.full((num_queries,), 1.0 / num_queries, dtype=queries.dtype)
    else:
        weight, bias = pooling
        query = weight[:width] @ fused.mean(dim=0) + bias[:width]
        projected = fused @ weight[width : 2 * width].T + bias[width : 2 * width]
        omega = softmax(projected @ query / math.sqrt(width))
    scores = queries @ contexts.T / temperature
    total = torch.zeros((), dtype=queries.dtype)
    for j in range(num_queries):
        total = total + omega[j] * (cross_entropy(scores[j], j) + cross_entropy(scores[:, j], j))
    return total / 2.0, omega


def local_loss(
    words: Sequence[Tensor],
    patches: Sequence[Tensor],
    num_real_words: Sequence[int],
    word_pooling: tuple[Tensor, Tensor] | None,
    patch_pooling: tuple[Tensor, Tensor] | None,
    temperature: float,
    *,
    released_padding: bool,
    released_context: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Equations 2 and 3 of all pairs -> word loss, patch loss, and the weights of each pair."""
    word_terms, patch_terms, word_weights, patch_weights = [], [], [], []
    for pair_words, pair_patches, count in zip(words, patches, num_real_words, strict=True):
        real = pair_words[:count]
        term, omega = alignment_of_pair(pair_words if released_padding else real, pair_patches, temperature,
                                        word_pooling, unit_context=True)
        word_terms.append(term)
        word_weights.append(omega)
        term, omega = alignment_of_pair(pair_patches, real, temperature, patch_pooling,
                                        unit_context=not released_context)
        patch_terms.append(term)
        patch_weights.append(omega)
    return (torch.stack(word_terms).mean(), torch.stack(patch_terms).mean(), word_weights, patch_weights)


def time_logits(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """One sequence: (T, E), (T, E) -> (T, T)."""
    return torch.stack([torch.stack([-((a - b) ** 2).sum() / temperature for b in y]) for a in x])


def cycle_logits(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    forward = time_logits(x, y, temperature)
    neighbours = torch.stack([softmax(row) @ y for row in forward])
    return time_logits(neighbours, x, temperature)


def fmc(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(S, T, E), (S, T, E) -> ()."""
    terms = []
    for sequence_x, sequence_y in zip(x, y, strict=True):
        logits = time_logits(sequence_x, sequence_y, temperature)
        terms += [cross_entropy(logits[j], j) for j in range(len(logits))]
    return torch.stack(terms).mean()


def rmr(
    x: Tensor, y: Tensor, temperature: float, *, variance_weight: float, floor: float, threshold: float
) -> Tensor:
    terms = []
    for sequence_x, sequence_y in zip(x, y, strict=True):
        length = len(sequence_x)
        times = torch.tensor([k / length for k in range(length)], dtype=x.dtype)
        for j, row in enumerate(cycle_logits(sequence_x, sequence_y, temperature)):
            beta = softmax(row)
            mean = (beta * times).sum()
            variance = (beta * (times - mean) ** 2).sum() + floor
            error = torch.abs(times[j] - mean)
            loss = error**2 if float(error.detach()) <= threshold else 2 * threshold * error - threshold**2
            terms.append(loss / variance + variance_weight * torch.log(variance))
    return torch.stack(terms).mean()


def temporal_loss(
    image: Tensor, report: Tensor, temperature: float, *, variance_weight: float, floor: float, threshold: float
) -> Tensor:
    """Both directions of FMC and RMR added."""
    total = torch.zeros((), dtype=image.dtype)
    for x, y in ((image, report), (report, image)):
        total = total + fmc(x, y, temperature)
        total = total + rmr(x, y, temperature, variance_weight=variance_weight, floor=floor, threshold=threshold)
    return total


# The whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Sizes and switches; True is the released behaviour."""

    image_heads: int
    text_heads: int
    max_tokens: int
    sequence_length: int
    global_temperature: float = 0.07
    local_temperature: float = 0.1
    temporal_temperature: float = 0.1
    variance_weight: float = 0.001
    variance_floor: float = 1e-7
    huber_threshold: float = 2.0
    released: bool = True


@dataclass(frozen=True)
class Result:
    """Everything that the golden files store of one forward pass."""

    image_features: Tensor
    report_features: Tensor
    words: list[list[str]]
    image: Tensor
    report: Tensor
    patches: list[Tensor]
    word_embeddings: list[Tensor]
    global_loss: Tensor
    local_loss: Tensor
    temporal_loss: Tensor
    after: dict[str, Tensor]


def medst(
    weights: Weights,
    vocabulary: Sequence[str],
    frontal: Tensor,
    lateral: Sequence[Tensor | None],
    captions: Sequence[Sequence[int]],
    num_sequence_rows: int,
    settings: Settings,
    *,
    training: bool,
) -> Result:
    """One forward pass over B pairs.

    Args:
        frontal: (B, C, side, side).
        lateral: one image or None per pair.
        captions: token ids of each caption; padding excluded.
        num_sequence_rows: the first so many rows are complete sequences in time order.
    """
    released = settings.released
    statistics = Statistics()
    tokens, patch_tokens = [], []
    for image, other in zip(frontal, lateral, strict=True):
        shown = torch.zeros_like(image) if other is None and released else other
        pair = vision_tokens(weights, image, shown, settings.image_heads, lateral_is_key=other is not None)
        tokens.append(pair)
        patch_tokens.append(pair[1:])
    image_features = torch.stack([pair[0] for pair in tokens])

    all_words, slots, counts = [], [], []
    for ids in captions:
        vectors, _ = text_tokens(weights, ids, settings.text_heads, true_positions=not released)
        padded = list(ids) + [0] * (settings.max_tokens - len(ids))
        words, members = words_of(padded, vocabulary, released=released)
        all_words.append(words)
        counts.append(len(words) - 1)
        slots.append(word_vectors(vectors, members, settings.max_tokens if released else len(words)))
    report_features = torch.stack([rows[0] for rows in slots])

    def local_head(name: str, groups: list[Tensor]) -> list[Tensor]:
        return list(head(weights, name, torch.cat(groups), training, statistics).split([len(g) for g in groups]))

    image = head(weights, "img_encoder_q.global_embed", image_features, training, statistics)
    report = head(weights, "text_encoder_q.global_embed", report_features, training, statistics)
    patches = local_head("img_encoder_q.local_embed", patch_tokens)
    word_embeddings = local_head("text_encoder_q.local_embed", [rows[1:] for rows in slots])
    pooling = [(weights[f"{name}_element_wise_multi_head.in_proj_weight"],
                weights[f"{name}_element_wise_multi_head.in_proj_bias"]) for name in ("word", "patch")]
    word_loss, patch_loss, _, _ = local_loss(
        word_embeddings, patches, counts, *pooling, settings.local_temperature,
        released_padding=released, released_context=released,
    )
    shape = (-1, settings.sequence_length, image.shape[1])
    return Result(
        image_features=image_features,
        report_features=report_features,
        words=all_words,
        image=image,
        report=report,
        patches=patches,
        word_embeddings=word_embeddings,
        global_loss=global_loss(image, report, settings.global_temperature),
        local_loss=word_loss + patch_loss,
        temporal_loss=temporal_loss(
            image[:num_sequence_rows].view(shape), report[:num_sequence_rows].view(shape),
            settings.temporal_temperature, variance_weight=settings.variance_weight, floor=settings.variance_floor,
            threshold=settings.huber_threshold,
        ),
        after=statistics.after,
    )
