"""The peers' formulas once more, one chunk, group and id at a time, in float64: what the fast forms are held to."""

from __future__ import annotations

import torch

Vector = torch.Tensor
Run = list[int]


def zero(logits: torch.Tensor) -> torch.Tensor:
    """0 with a graph, whatever the logits hold."""
    return logits.reshape(-1)[:0].sum()


def log_softmax(logits: Vector, temperature: float) -> Vector:
    scaled = logits / temperature
    return scaled - scaled.logsumexp(0)


def predicting(ids: list[int], chunk: int) -> Run:
    return [t for t in range(len(ids) - 1) if ids[t + 1] == chunk]


def chunks_that_count(batch, *masks) -> list[tuple[int, int, Run, Run]]:
    """Sample, chunk and both sides' logit positions of every valid chunk."""
    found = []
    for b, (ours, theirs) in enumerate(zip(batch.student_chunks.tolist(), batch.teacher_chunks.tolist(), strict=True)):
        for c in range(batch.pair_valid.shape[1]):
            here, there = predicting(ours, c), predicting(theirs, c)
            if here and there and batch.sample_mask[b] and all(mask[b][c] for mask in masks):
                found.append((b, c, here, there))
    return found


def p_kl(batch, *, temperature: float, reverse_kl: bool, vocab_topk: int, exact_token_match_only: bool) -> torch.Tensor:
    student, teacher = batch.student, batch.teacher
    highest = [max(float(row[j]) for sample in teacher for row in sample) for j in range(teacher.shape[2])]
    best = sorted(range(len(highest)), key=lambda j: -highest[j])[:vocab_topk]
    masks = [batch.pair_valid] + [batch.pair_is_correct] * exact_token_match_only
    found, loss = chunks_that_count(batch, *masks), zero(student)
    for b, _, here, there in found:
        mass = {j: zero(student) for j in best}
        for t in here:
            p = log_softmax(student[b, t], temperature).exp()
            for i, j, w in zip(batch.rows.tolist(), batch.columns.tolist(), batch.weights, strict=True):
                if j in mass:
                    mass[j] = mass[j] + w * p[i] / (len(here) + 1e-10)
        whole = sum(mass.values(), start=zero(student)) + 1e-10
        means = sum(log_softmax(teacher[b, t][best], temperature) for t in there) / (len(there) + 1e-10)
        for j, lq in zip(best, means, strict=True):
            lp = (mass[j] / whole + 1e-10).log()
            loss = loss + (lp.exp() * (lp - lq) if reverse_kl else lq.exp() * (lq - lp))
    return temperature**2 * loss / max(len(found), 1)


def pairs(batch, *, xtoken_loss: bool) -> list[tuple[int, int]]:
    links = list(zip(batch.rows.tolist(), batch.columns.tolist(), batch.weights.tolist(), strict=True))
    claims: dict[int, list[tuple[float, int]]] = {}
    for i in range(batch.student.shape[2]):
        row = [(w, j) for r, j, w in links if r == i]
        if xtoken_loss:
            top = max((w for w, _ in row), default=0.0)
            if top >= 0.6:
                claims.setdefault(next(j for w, j in row if w == top), []).append((-top, i))
        elif len(row) == 1 and row[0][0] == 1.0:
            claims.setdefault(row[0][1], []).append((0.0, i))
    return sorted((min(claim)[1], j) for j, claim in claims.items())


def gold(batch, *, xtoken_loss: bool, temperature: float, reverse_kl: bool, uncommon_topk: int) -> torch.Tensor:
    student, teacher, common = batch.student, batch.teacher, pairs(batch, xtoken_loss=xtoken_loss)
    ours = [i for i in range(student.shape[2]) if i not in {i for i, _ in common}]
    theirs = [j for j in range(teacher.shape[2]) if j not in {j for _, j in common}]
    found, loss = chunks_that_count(batch, batch.pair_valid), zero(student)
    for b, _, here, there in found:
        s = sum(log_softmax(student[b, t], temperature) for t in here) / (len(here) + 1e-10)
        q = sum(log_softmax(teacher[b, t], temperature) for t in there) / (len(there) + 1e-10)
        for i, j in common:
            loss = loss + (s[i].exp() * (s[i] - q[j]) if reverse_kl else q[j].exp() * (q[j] - s[i]))
        first = sorted((s[i].exp() for i in ours), key=torch.Tensor.item, reverse=True)[:uncommon_topk]
        second = sorted((q[j].exp() for j in theirs), key=torch.Tensor.item, reverse=True)[:uncommon_topk]
        for x, y in zip(first, second, strict=False):
            loss = loss + (x - y).abs()
    return temperature**2 * loss / max(len(found), 1)


def cross_entropy(logits: torch.Tensor, ids: list[list[int]], counts: list[list[bool]], epsilon: float) -> torch.Tensor:
    loss, number = zero(logits), 0
    for b, row in enumerate(ids):
        for t in range(len(row) - 1):
            if counts[b][t + 1]:
                loss, number = loss - log_softmax(logits[b, t], 1.0)[row[t + 1]], number + 1
    return loss / (number + epsilon) if number else loss


def groups(student_ends: list[int], teacher_ends: list[int]) -> list[tuple[Run, Run]]:
    """Two queues: the one whose head ends first gives it up; a group closes when both heads end together."""
    queues = [list(enumerate(student_ends)), list(enumerate(teacher_ends))]
    found, now = [], ([], [])
    while queues[0] and queues[1]:
        first, second = queues[0][0][1], queues[1][0][1]
        for side, moves in ((0, first <= second), (1, second <= first)):
            if moves:
                now[side].append(queues[side].pop(0)[0])
        if first == second:
            found, now = [*found, now], ([], [])
    rest = tuple(part + [index for index, _ in queue] for part, queue in zip(now, queues, strict=True))
    return [pair for pair in [*found, rest] if pair[0] and pair[1]]


def uld(answers, options: dict) -> torch.Tensor:
    """The mean of the samples' losses."""
    losses = [_uld_of_sample(answers, b, options) for b in range(len(answers.student))]
    return sum(losses, start=zero(answers.student)) / len(losses)


def span(labels: list[int], skip: bool) -> Run:
    answer = [t for t, label in enumerate(labels) if label != -100]
    return list(range(answer[0], answer[0] + len(answer) - skip)) if answer else []


def _uld_of_sample(answers, b: int, options: dict) -> torch.Tensor:
    here = span(answers.student_labels[b].tolist(), options["skip_student_eos"])
    there = span(answers.teacher_labels[b].tolist(), options["skip_teacher_eos"])
    if options["extended"]:
        ends = [answers.student_byte_offsets[b, t, 1].item() for t in here]
        their_ends = [answers.teacher_byte_offsets[b, t, 1].item() for t in there]
        found = groups(ends, their_ends)
    else:
        found = [([k], [k]) for k in range(min(len(here), len(there)))]
    shift = options["merge"] == "bayesian"
    if shift and found and 0 in {here[0], there[0]}:
        found = found[1:]
    loss = zero(answers.student)
    for ours, theirs in found:
        q = _merged(
            answers.student[b], answers.student_ids[b], [here[k] for k in ours], shift, options["student_temperature"]
        )
        p = _merged(
            answers.teacher[b],
            answers.teacher_ids[b],
            [there[k] for k in theirs],
            shift,
            options["teacher_temperature"],
        )
        loss = loss + _compared(q, p, answers.matched, options)
    return loss / max(len(found), 1)


def _merged(logits: torch.Tensor, ids: torch.Tensor, tokens: Run, shift: bool, temperature: float) -> Vector:
    whole = tokens[-1] if shift else tokens[0]
    merged = log_softmax(logits[whole - shift], temperature).exp()
    for token in tokens:
        if token != whole:
            merged = merged * log_softmax(logits[token - shift], temperature).exp()[ids[token]].clamp(min=1e-8)
    return merged


def _sorted_l1(q: list, p: list) -> torch.Tensor:
    ours, theirs = sorted(q, key=torch.Tensor.item, reverse=True), sorted(p, key=float, reverse=True)
    length = max(len(ours), len(theirs))
    padded = [side + [torch.zeros((), dtype=torch.float64)] * (length - len(side)) for side in (ours, theirs)]
    return sum((x - y).abs() for x, y in zip(*padded, strict=True))


def _compared(q: Vector, p: Vector, matched: torch.Tensor | None, options: dict) -> torch.Tensor:
    if matched is None:
        return _sorted_l1(list(q), list(p))
    beta, together = options["beta"], zero(q)
    for s, t in matched.tolist():
        x, y = q[s].clamp(min=1e-8), p[t].clamp(min=1e-8)
        if beta == 0:
            together = together + y * (y / x).log()
        elif beta == 1:
            together = together + x * (x / y).log()
        else:
            m = beta * y + (1 - beta) * x
            together = together + beta * y * (y / m).log() + (1 - beta) * x * (x / m).log()
    ours = [q[i] for i in range(len(q)) if i not in matched[:, 0].tolist()]
    theirs = [p[j] for j in range(len(p)) if j not in matched[:, 1].tolist()]
    apart = _sorted_l1(ours, theirs) if ours and theirs else zero(q)
    adaptive = len(matched) / len(p)
    first, second = options["weights"] or (adaptive, 1 - adaptive)
    return first * together + second * apart


def alm(batch, *, tau: float, space_ids: tuple[Run, Run] | None) -> torch.Tensor:
    found, loss = chunks_that_count(batch, batch.pair_valid), zero(batch.student)
    for b, _, here, there in found:
        levels = []
        sides = ((batch.teacher, batch.teacher_ids, there), (batch.student, batch.student_ids, here))
        for side, (logits, ids, positions) in enumerate(sides):
            level = sum(log_softmax(logits[b, t], 1.0)[ids[b, t + 1]] for t in positions)
            if space_ids is not None:
                after = log_softmax(logits[b, positions[-1] + 1], 1.0).exp()
                level = level + sum(after[i] for i in space_ids[1 - side]).log()
            levels.append(level / tau - 1e-6)
        a, c = levels
        loss = loss - (a.exp() * c + (1 - a.exp()) * (1 - c.exp()).log())
    return loss / max(len(found), 1)
