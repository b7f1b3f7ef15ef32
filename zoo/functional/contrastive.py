"""Learning p(w | c) = exp(s(w, c)) / Z_c of words without the sum Z_c over all of them.

Gutmann & Hyvarinen 2012; Mnih & Teh 2012, arXiv:1206.6426; Mnih & Kavukcuoglu 2013; Mikolov et al. 2013,
arXiv:1310.4546; Bengio & Senecal 2003; seed 000, "Noise Contrastive Estimation".

    maximum likelihood    J = -log p(w | c) = -s(w, c) + log Z_c,    Z_c = sum_w' exp s(w', c)
    NCE                   J = -log sigma(delta s(w, c)) - sum_{i<=k} log sigma(-delta s(w_i, c)),   w_i ~ q
                          delta s = s - log(k q)
    negative sampling     the same with delta s = s, which is NCE where k q(w) = 1: q uniform and k = V
    importance sampling   J = -s(w, c) + log 1/k sum_{i<=k} exp(s(w_i, c)) / q(w_i),    w_i ~ q

NCE tells a word of the text from k words of noise. With P(w | c) the distribution of the text, its expected gradient of
-J is sum_w k q / (e^s + k q) (P - e^s) grad s: zero where e^s = P, which is normalised by itself, and as k grows
sum_w (P - e^s) grad s, the likelihood's where Z_c = 1. Importance sampling's weighs the noise by e^s / q, normalised
over the k, and is biased by O(1 / k). Seed 000 writes the objectives as sums of sigmoids; they are sums of log
sigmoids.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from zoo.checks.errors import UserError
from zoo.functional.precision import float64_device, in_float64

ROW = 32  # centres of a row

Lookup = Callable[[Tensor, Tensor], Tensor]  # rows of a table (V, D) by numbers (...), (..., D)


def dense(table: Tensor, numbers: Tensor) -> Tensor:
    """Rows of a table, differentiable as any other function."""
    return table[numbers]


def sparse(table: Tensor, numbers: Tensor) -> Tensor:
    """The same with a gradient that holds the rows that were looked up, and no others."""
    return F.embedding(numbers, table, sparse=True)


class Rows(NamedTuple):
    """A batch.

    words: numbers of words, (B, window + 32 + window); -1 where there is none.
    reach: of each centre's window, 1 to window words to either side, or 0 where there is no centre; (B, 32).
    """

    words: Tensor
    reach: Tensor


def within_reach(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """The centres, the words around each, and which of these are within its reach, so that the two are a pair.

    Returns:
        (B, 32), (B, 32, 2 window + 1), the centre itself in the middle, and the same as booleans.
    """
    window = (rows.words.shape[-1] - ROW) // 2
    around = rows.words.unfold(-1, 2 * window + 1, 1)
    distance = torch.arange(-window, window + 1, device=rows.words.device).abs()
    taken = (distance > 0) & (distance <= rows.reach[..., None]) & (around >= 0)
    return rows.words[..., window:-window], around, taken


def around_each(values: Tensor, width: int) -> Tensor:
    """Select the words around each centre: (B, 32, n) values for each centre and word of a row, to (B, 32, width).

    The i-th centre takes words i .. i + width - 1 of its row.
    """
    place = torch.arange(ROW, device=values.device)[:, None] + torch.arange(width, device=values.device)
    return values.gather(-1, place.expand(len(values), -1, -1))


def nce_loss(s: Tensor, s_noise: Tensor, log_kq: Tensor, log_kq_noise: Tensor, each: Tensor | float = 1.0) -> Tensor:
    """-log sigma(s - log kq) - sum over noise words of ``each`` log sigma(log kq - s_noise); nats, (...).

    Args:
        s: scores of the words of the text, (...).
        s_noise: of the noise words, (..., M).
        log_kq: log(k q(w)) of the former, (...); 0 for negative sampling.
        log_kq_noise: of the latter, (..., M).
        each: what a noise word counts for, k / M if M of them stand for k.
    """
    return F.softplus(log_kq - s) + (each * F.softplus(s_noise - log_kq_noise)).sum(-1)


def softmax_loss(s: Tensor, s_all: Tensor) -> Tensor:
    """-s + log sum exp of the scores of all words, (...) and (..., V): -log p(w | c), nats, (...)."""
    return s_all.logsumexp(-1) - s


def importance_sampled_loss(s: Tensor, s_noise: Tensor, log_q_noise: Tensor) -> Tensor:
    """-s + log 1/M sum exp(s_noise - log q), nats (...): -log p(w | c) with Z_c estimated from noise words (..., M)."""
    weights = s_noise - log_q_noise
    return weights.logsumexp(-1) - math.log(weights.shape[-1]) - s


def noise_loss(objective: str, s: Tensor, s_noise: Tensor, log_q: Tensor, log_q_noise: Tensor, k: int) -> Tensor:
    """The objective by its name, of those that draw noise words; nats, (...).

    Args:
        objective: ``nce``, ``negative_sampling`` or ``importance_sampling``.
        s: scores of the words of the text, (...).
        s_noise: of the noise words, (..., M).
        log_q: log q(w) of the former, (...).
        log_q_noise: of the latter, (..., M).
        k: noise words per word of the text, that the M stand for.
    """
    if objective == "importance_sampling":
        return importance_sampled_loss(s, s_noise, log_q_noise)
    shift = (log_q + math.log(k), log_q_noise + math.log(k))
    log_kq, log_kq_noise = shift if objective == "nce" else map(torch.zeros_like, shift)
    return nce_loss(s, s_noise, log_kq, log_kq_noise, each=k / log_q_noise.shape[-1])


class NoiseDistribution(NamedTuple):
    """A distribution q over V words, drawn from in constant time by the alias method (Walker 1977; Vose 1991).

    Word i is drawn with the probability 1 / V of its own column, kept with ``share`` (V,) and else exchanged for
    ``alias`` (V,). ``log_q`` (V,) is in nats.
    """

    log_q: Tensor
    share: Tensor
    alias: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> "NoiseDistribution":
        """q proportional to ``weights`` (V,), positive."""
        weights = weights.cpu().double()
        q = weights / weights.sum()
        column = (q * len(q)).tolist()
        share, alias = [1.0] * len(column), list(range(len(column)))
        poor = [i for i, mass in enumerate(column) if mass < 1]
        rich = [i for i, mass in enumerate(column) if mass >= 1]
        while poor and rich:
            i, j = poor.pop(), rich[-1]
            share[i], alias[i] = column[i], j
            column[j] -= 1 - column[i]  # j fills what i leaves of its column
            if column[j] < 1:
                poor.append(rich.pop())
        return cls(q.log().float(), torch.tensor(share), torch.tensor(alias))

    def draw(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Words, (*shape), drawn where ``generator`` lives, on the device of q."""
        where = self.share.device if generator is None else generator.device
        column = torch.randint(len(self.share), shape, generator=generator, device=where).to(self.share.device)
        u = torch.rand(shape, generator=generator, device=where).to(self.share.device)
        return torch.where(u < self.share[column], column, self.alias[column])


class HeldOut(Metric):
    """What p(w | c), summed over the whole vocabulary, says of held-out text: sums over pairs and centres.

    They are float64 whatever the precision of the model, on the CPU where a device has none.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        def moved(t: Tensor) -> Tensor:  # and not rounded
            return t.to(float64_device(fn(torch.empty(0, device=t.device)).device))

        return super()._apply(moved, exclude_state)

    def update(self, log_p: Tensor, log_Z: Tensor) -> None:
        """Take in log p(w | c) of pairs, (P,), and log Z_c of centres, (n,); nats. No value is read back."""
        log_p, log_Z = in_float64(log_p), in_float64(log_Z)
        pairs, centres = (log_p.new_full((), len(t)) for t in (log_p, log_Z))
        sums = torch.stack([pairs, -log_p.sum(), centres, log_Z.sum(), log_Z.square().sum()])
        self.sums = self.sums + sums.to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """``nll``, nats per pair, and its exponential, ``perplexity``; ``log_Z`` and ``log_Z_sd``, the mean and the
        standard deviation of log Z_c over centres, nats."""
        pairs, nll, n, first, second = self.sums.tolist()
        nll, mean = nll / max(1, pairs), first / max(1, n)
        sd = max(0.0, second / max(1, n) - mean**2) ** 0.5
        perplexity = float(torch.tensor(nll).exp())  # infinite, not an error, of scores that have diverged
        return {"nll": nll, "perplexity": perplexity, "log_Z": mean, "log_Z_sd": sd}


def spelled(words: list[str]) -> Tensor:
    """Words as a tensor that goes with weights: UTF-8, a line each; uint8."""
    return torch.frombuffer(bytearray("\n".join(words).encode()), dtype=torch.uint8)


def words_of(spelling: Tensor) -> list[str]:
    """The words of such a tensor: the inverse of :func:`spelled`."""
    return bytes(spelling.tolist()).decode().split("\n")


class UnknownWord(KeyError, UserError):
    """A word outside the vocabulary; the message has those that are spelled nearly so."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes

    @classmethod
    def of(cls, word: str, words: list[str]) -> "UnknownWord":
        """The refusal of ``word``, which is not one of ``words``."""
        close = [w for form in (word.lower(), word) for w in difflib.get_close_matches(form, words, n=5)]
        hint = f"; close to it: {', '.join(dict.fromkeys(close))}" if close else ""
        return cls(f"{word!r} is not among the {len(words):,} words of the vocabulary{hint}")
