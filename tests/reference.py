"""The student's loss from its definitions, twice (float64 numpy loops, plain dense torch); below,
lookback ratios by plain loops.

Both are written from the formulas of docs/losses.md and independently of pipeline.student. The
numpy truth builds every row's classes (single tokens, or a set of tokens that is matched as one)
over the whole vocabulary, and its gradient goes through the Jacobian of the class probabilities.
The torch version is the obvious one, in the dtype of its inputs, with automatic differentiation.

Shapes: N rows, K entries, V vocabulary, H hidden.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

JSD_SHARE = 0.5
SKEW = 0.1
# The log of nothing, kept finite, or automatic differentiation makes NaN of it.
NO_CLASS = -1e30


def log_softmax(row):
    top = row.max()
    return row - top - math.log(np.exp(row - top).sum())


def cut(entries, tail, top_k, min_prob):
    """Keep the largest entries of [(id, logprob, draws)]; what is dropped joins the tail."""
    present = [entry for entry in entries if entry[1] > -math.inf]
    present.sort(key=lambda entry: -entry[1])  # stable: ties keep their order
    kept = []
    for rank, (token, logprob, draws) in enumerate(present):
        too_small = min_prob > 0 and logprob < math.log(min_prob) and rank > 0
        if too_small or (top_k is not None and rank >= top_k):
            tail += math.exp(logprob)
        else:
            kept.append((token, logprob, draws))
    return kept, tail


def value_and_slope(divergence, p, q):
    """Return one class's part of the divergence and its derivative in q."""
    if divergence == "kl":
        return (p * math.log(p / q), -p / q) if p > 0 else (0.0, 0.0)
    if divergence == "reverse-kl":
        return q * math.log(q / p), math.log(q / p) + 1
    if divergence == "jsd":
        m = JSD_SHARE * p + (1 - JSD_SHARE) * q
        teacher = p * math.log(p / m) if p > 0 else 0.0
        student = q * math.log(q / m)
        return JSD_SHARE * teacher + (1 - JSD_SHARE) * student, (1 - JSD_SHARE) * math.log(q / m)
    m = SKEW * p + (1 - SKEW) * q
    return (p * math.log(p / m), -(1 - SKEW) * p / m) if p > 0 else (0.0, 0.0)


def class_targets(num_tokens, label, kept, tail, settings):
    """Return [(set of tokens, target probability)] of one row."""
    target = np.zeros(num_tokens)
    temperature = settings.teacher_temperature * settings.temperature
    for token, logprob, draws in kept:
        target[token] += math.exp(logprob / temperature) if draws is None else draws
    if settings.tail == "renormalize" and target.sum() > 0:
        target /= target.sum()
    if settings.tail == "label":
        target[label] += tail
    if settings.tail != "ghost":
        return [([token], target[token]) for token in range(num_tokens)]
    inside = [token for token, _, _ in kept]
    outside = [token for token in range(num_tokens) if token not in inside]
    rest = [(outside, max(tail, 2.0**-24) if settings.divergence == "reverse-kl" else tail)]
    return [([token], target[token]) for token in inside] + (rest if outside else [])


def kl_of_row(logits, label, kept, tail, settings):
    """Return the divergence of one row times T^2, and its gradient in the logits."""
    temperature = settings.temperature
    q = np.exp(log_softmax(logits / temperature))
    value, gradient = 0.0, np.zeros_like(q)
    for tokens, p in class_targets(len(logits), label, kept, tail, settings):
        q_class = math.fsum(q[tokens])
        part, slope = value_and_slope(settings.divergence, p, q_class)
        value += part
        gradient[tokens] += slope * q[tokens]
        gradient -= slope * q_class * q
    if kept and kept[0][2] is not None:  # draws: compared with the true log-probabilities
        num_draws = sum(draws for _, _, draws in kept)
        log_q = log_softmax(logits)
        value = sum(draws / num_draws * (lp - log_q[token]) for token, lp, draws in kept)
    return value * temperature**2, gradient * temperature


def truth(
    hidden, weight, bias, labels, rows, alphas, weights, settings, softcap=None, smoothing=0.0
):
    """Return the weighted sum and its gradients for hidden [N, H], weight [V, H] and bias [V].

    smoothing: the CE's target is (1 - smoothing) at the label and smoothing / V at every token.
    """
    hidden, weight = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    logits_NV = hidden @ weight.T + np.asarray(bias, np.float64)
    slopes_NV = np.ones_like(logits_NV)
    if softcap is not None:
        tanh_NV = np.tanh(logits_NV / softcap)
        logits_NV, slopes_NV = softcap * tanh_NV, 1 - tanh_NV**2
    gradient_NV, total = np.zeros_like(logits_NV), 0.0
    draws_NK = rows.entry_draws_NK
    for n, logits in enumerate(logits_NV):
        draws = [None] * rows.entry_token_ids_NK.shape[1] if draws_NK is None else draws_NK[n]
        entries = [
            (int(token), float(logprob), None if count is None else float(count))
            for token, logprob, count in zip(
                rows.entry_token_ids_NK[n], rows.entry_logprobs_NK[n], draws, strict=True
            )
        ]
        tail = math.exp(float(rows.log_tail_mass_N[n]))
        kept, tail = cut(entries, tail, settings.top_k, settings.min_prob)
        kl, kl_gradient = kl_of_row(logits, int(labels[n]), kept, tail, settings)
        log_q = log_softmax(logits)
        gold = np.full_like(log_q, smoothing / len(log_q))
        gold[labels[n]] += 1 - smoothing
        ce = -math.fsum(gold[gold > 0] * log_q[gold > 0])
        ce_gradient = np.exp(log_q) - gold
        total += float(weights[n]) * (ce + float(alphas[n]) * kl)
        gradient_NV[n] = float(weights[n]) * (ce_gradient + float(alphas[n]) * kl_gradient)
    gradient_NV *= slopes_NV
    return total, (gradient_NV @ weight, gradient_NV.T @ hidden, gradient_NV.sum(0))


def plain(
    hidden, weight, bias, labels, rows, alphas, weights, settings, softcap=None, smoothing=0.0
):
    """Return the weighted sum by dense torch operations, each the obvious one."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    ce = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    p, log_q = _dense_target(logits, labels, rows, settings)
    q = log_q.exp()
    log_p = p.log().where(p > 0, NO_CLASS)
    mixture = {"jsd": JSD_SHARE, "skewed-kl": SKEW}.get(settings.divergence, 0.0)
    log_m = log_q
    if mixture:
        log_m = torch.logaddexp(log_p + math.log(mixture), log_q + math.log1p(-mixture))
    teacher = torch.where(p > 0, p * (log_p - log_m), 0.0).sum(1)
    student = torch.where(q > 0, q * (log_q - log_m), 0.0).sum(1)
    if settings.divergence == "reverse-kl":
        kl = torch.where(q > 0, q * (log_q - log_p), 0.0).sum(1)
    elif settings.divergence == "jsd":
        kl = JSD_SHARE * teacher + (1 - JSD_SHARE) * student
    else:
        kl = teacher
    kl = kl * settings.temperature**2
    return (weights * (ce + alphas * kl)).sum()


def _dense_target(logits, labels, rows, settings):
    """Target and student log-probabilities; for `ghost` over the support and one class more."""
    num_tokens = logits.shape[1]
    rows = [torch.as_tensor(column) for column in rows[:3]]
    ids, logprobs, log_tail = rows[0], rows[1].to(logits.dtype), rows[2].to(logits.dtype)
    kept = torch.zeros_like(logprobs, dtype=torch.bool)
    for n in range(len(ids)):
        entries = [(k, float(logprobs[n, k]), None) for k in range(ids.shape[1])]
        survivors, _ = cut(entries, 0.0, settings.top_k, settings.min_prob)
        kept[n, [k for k, _, _ in survivors]] = True
    dropped = logprobs.exp() * ~kept
    tail = log_tail.exp() + dropped.sum(1)
    temperature = settings.temperature * settings.teacher_temperature
    p = torch.zeros_like(logits).scatter_add(1, ids, (logprobs / temperature).exp() * kept)
    log_q = (logits / settings.temperature).log_softmax(1)
    if settings.tail == "renormalize":
        return p / p.sum(1, keepdim=True), log_q
    if settings.tail == "label":
        return p + tail[:, None] * F.one_hot(labels, num_tokens), log_q
    inside = torch.zeros_like(logits).scatter_add(1, ids, kept.to(logits.dtype)) > 0
    rest = (log_q.exp() * ~inside).sum(1)
    whole = inside.all(1)  # no class is left over
    tail = torch.where(whole, 0.0, tail)
    if settings.divergence == "reverse-kl":
        tail = torch.where(whole, 1.0, tail.clamp(min=2.0**-24))
    rest = torch.where(whole, 1.0 if settings.divergence == "reverse-kl" else 1e-30, rest)
    log_q = torch.where(inside, log_q, NO_CLASS)
    return torch.cat([p, tail[:, None]], 1), torch.cat([log_q, rest.log()[:, None]], 1)


def lookback_ratios(attentions, num_context, first, end):
    """Return the lookback ratios [tokens, layers * heads] of the tokens at first .. end - 1.

    Args:
        attentions: float64 [layers, heads, T, T] of one whole pass, row = the position that looks.
        num_context: C; positions before it are context.
        first: position of the first answer token.
        end: position after the last one.
    """
    num_layers, num_heads = attentions.shape[:2]
    table = []
    for token in range(first, end):
        row = []
        for layer in range(num_layers):
            for head in range(num_heads):
                weights = attentions[layer, head, token - 1]  # the row that predicts the token
                on_context = [weights[place] for place in range(num_context)]
                on_new = [weights[place] for place in range(num_context, token)]
                context, new = sum(on_context) / len(on_context), sum(on_new) / len(on_new)
                row.append(context / (context + new))
        table.append(row)
    return np.array(table)
