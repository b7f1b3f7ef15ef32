"""Losses for p(w | c) = exp(s(w, c)) / Z_c, the probability of a word w in a context c.

Z_c is a sum over all words of the vocabulary. Only maximum likelihood computes this sum:

    maximum likelihood    J = -log p(w | c) = -s(w, c) + log Z_c,    Z_c = sum_w' exp s(w', c)
    NCE                   J = -log sigma(delta s(w, c)) - sum_{i<=k} log sigma(-delta s(w_i, c)),   w_i ~ q
                          delta s = s - log(k q)
    negative sampling     NCE with delta s = s
    importance sampling   J = -s(w, c) + log 1/k sum_{i<=k} exp(s(w_i, c)) / q(w_i),    w_i ~ q

Noise-contrastive estimation (NCE) classifies a word of the text against k noise words. Negative sampling is equal to
NCE if q is uniform on the V words and k = V. Let P(w | c) be the distribution of the text. For NCE, the expected
gradient of -J is

    sum_w k q / (e^s + k q) (P - e^s) grad s

This gradient is zero at e^s = P. Then Z_c = 1, although no constraint enforces it. As k grows, the gradient tends
to sum_w (P - e^s) grad s. If Z_c = 1, this limit is the gradient of the log-likelihood.

In the gradient of importance sampling, a noise word has a weight proportional to e^s / q. The weights of the k words
sum to 1. This gradient has a bias of O(1 / k).

[Xu18b] prints the NCE and skip-gram objectives as sums of sigmoids. The correct objectives are sums of log sigmoids.

Sources: Gutmann & Hyvärinen 2012; Mnih & Teh 2012, arXiv:1206.6426; Mnih & Kavukcuoglu 2013; Mikolov et al. 2013,
arXiv:1310.4546; Bengio & Senécal 2003; [Xu18b], "Noise Contrastive Estimation".
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
from zoo.checks.rows import ROW, as_rows
from zoo.checks.values import check_integer
from zoo.functional.precision import float64_device, in_float64

Lookup = Callable[[Tensor, Tensor], Tensor]  # (table (V, D), indices (...)) -> rows of the table (..., D)


def dense(table: Tensor, numbers: Tensor) -> Tensor:
    """Return the rows (..., D) of ``table`` (V, D) at the indices ``numbers`` (...). The gradient is dense."""
    return table[numbers]


def sparse(table: Tensor, numbers: Tensor) -> Tensor:
    """Return the same rows as :func:`dense`, (..., D). The gradient is sparse and holds only these rows."""
    return F.embedding(numbers, table, sparse=True)


class Rows(NamedTuple):
    """A batch of B rows of text with 32 centre words each.

    words: word indices, (B, window + 32 + window). -1 marks positions without a word.
    reach: distance up to which words form pairs with each centre, from 1 to window, (B, 32). 0 marks positions
        without a centre.
    """

    words: Tensor
    reach: Tensor


def pairs_in_window(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centres, the words around each centre, and which of these words form a pair with the centre.

    Returns:
        Centres (B, 32), words around them (B, 32, 2 window + 1), and booleans (B, 32, 2 window + 1) that are True for
        words within reach of the centre. The middle of the last axis is the centre itself, which is not a pair.
    """
    window = (rows.words.shape[-1] - ROW) // 2
    around = rows.words.unfold(-1, 2 * window + 1, 1)
    distance = torch.arange(-window, window + 1, device=rows.words.device).abs()
    taken = (distance > 0) & (distance <= rows.reach[..., None]) & (around >= 0)
    return rows.words[..., window:-window], around, taken


def rows_of(batch: Sequence[Tensor]) -> Rows:
    """Return the rows of a batch of rows, or of a batch of pairs (zoo/checks/rows.py)."""
    return Rows(*as_rows(batch))


def scale_rows(gradient: Tensor, factors: Tensor) -> None:
    """Multiply the rows of a dense or sparse ``gradient`` (V, D) by ``factors`` (V, 1), in place."""
    if gradient.is_sparse:
        gradient._values().mul_(factors[gradient._indices()[0]])
    else:
        gradient.mul_(factors)


def most_pairs(rows: Rows) -> Tensor:
    """Return the number of pairs that ``rows`` have if there is a word at each position within reach, ()."""
    return 2 * rows.reach.sum(dtype=torch.float32)


def spread(places: Tensor, total: float, wanted: int) -> Tensor:
    """Return the indices of rows that are evenly spread over ``total`` rows, about ``wanted`` in all, (n,).

    Args:
        places: places of the rows of a batch among all rows, (B,).
        total: number of all rows. If it is infinite, one row of a batch is chosen.
        wanted: approximate number of rows.
    """
    every = max(1, int(total) // wanted if math.isfinite(total) else len(places))
    return (places % every == 0).nonzero()[:, 0]


def most_similar(words: list[str], unit: Tensor, x: Tensor, without: list[str], n: int) -> list[tuple[str, float]]:
    """Return the ``n`` words with the largest cosine with ``x``, and the cosines.

    Args:
        words: the vocabulary, V words.
        unit: their vectors, scaled to length 1, (V, D).
        x: a vector of length 1, (D,).
        without: words that are left out.
        n: number of words, at least 1.
    """
    check_integer("n", n)
    cosines = unit @ x
    cosines[[words.index(word) for word in without]] = -math.inf
    top = cosines.topk(min(n, len(words) - len(set(without))))
    return [(words[i], cosine) for cosine, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]


def around_each(values: Tensor, width: int) -> Tensor:
    """Return the values of the words around each centre, (B, 32, width).

    Words i .. i + width - 1 of a row are around its centre number i.

    Args:
        values: a value for each pair of a centre and a word of the same row, (B, 32, n).
        width: number of words around a centre, 2 window + 1.
    """
    place = torch.arange(ROW, device=values.device)[:, None] + torch.arange(width, device=values.device)
    return values.gather(-1, place.expand(len(values), -1, -1))


def nce_loss(s: Tensor, s_noise: Tensor, log_kq: Tensor, log_kq_noise: Tensor, each: Tensor | float = 1.0) -> Tensor:
    """Return -log sigma(s - log kq) - sum over noise words of ``each`` log sigma(log kq - s_noise), (...) nats.

    Args:
        s: scores of the words of the text, (...).
        s_noise: scores of the noise words, (..., M).
        log_kq: log(k q(w)) of the words of the text, (...); 0 for negative sampling.
        log_kq_noise: log(k q(w)) of the noise words, (..., M); 0 for negative sampling.
        each: weight of a noise word. If M noise words replace k, it is k / M.
    """
    return F.softplus(log_kq - s) + (each * F.softplus(s_noise - log_kq_noise)).sum(-1)


def summed_nce_loss(
    rows: Rows, noise: Tensor, scores: Callable[[Tensor, Tensor], Tensor], log_kq: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of :func:`nce_loss` over the pairs of ``rows``, () nats, and the number of pairs, ().

    The centres of a row share its noise words. Every score gets a weight, which is 0 if the score belongs to no pair.
    The weighted sum takes fewer operations than gathering the scores of each pair. Small batches are therefore faster.

    Args:
        rows: B rows of n words each.
        noise: noise words of each row, (B, M).
        scores: (centres (B, 32), words (B, n + M)) -> scores (B, 32, n + M).
        log_kq: log(k q(w)) of the vocabulary, (V,). None for negative sampling.
        k: number of noise words for each pair. Each of the M noise words has the weight k / M in a pair.
    """
    n, M = rows.words.shape[1], noise.shape[1]
    window = (n - ROW) // 2
    words = torch.cat([rows.words, noise], 1).clamp(min=0)  # -1 marks a position without a word
    s = scores(words[:, window : window + ROW], words).transpose(1, 2)
    distance = torch.arange(-window, n - window, device=s.device)[:, None] - torch.arange(ROW, device=s.device)
    near = (distance != 0) & (distance.abs() <= rows.reach[:, None])
    taken = near & (rows.words >= 0)[..., None]  # (B, n, 32)
    pairs = taken.sum(1, keepdim=True)  # number of pairs of each centre, (B, 1, 32)
    weight = torch.cat([taken, (k / M * pairs).expand(-1, M, -1)], 1)
    sign = torch.ones(n + M, 1, device=s.device)
    sign[:n].fill_(-1)
    delta = s if log_kq is None else s - log_kq[words][..., None]
    return _WeightedSoftplus.apply(sign * delta, weight)[0], pairs.sum()


class _WeightedSoftplus(torch.autograd.Function):
    """Return the sum of ``weight`` softplus(x), (), and sigmoid(x). Both arguments have the same shape.

    On a CPU, F.softplus takes several times longer than sigmoid and log. With p = sigmoid(x), softplus(x) =
    max(x, 0) - log max(p, 1 - p), and its derivative is p. The weight has no gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        p = x.sigmoid()
        return (x.relu().sub_((p - 0.5).abs_().add_(0.5).log_()).mul_(weight)).sum(), p

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx, gradient, _):
        weight, p = ctx.saved_tensors
        return gradient * weight * p, None


def softmax_loss(s: Tensor, s_all: Tensor) -> Tensor:
    """Return -log p(w | c) = -s + log sum exp(s_all), (...) nats, from scores ``s`` (...) and ``s_all`` (..., V)."""
    return s_all.logsumexp(-1) - s


def importance_sampled_loss(s: Tensor, s_noise: Tensor, log_q_noise: Tensor) -> Tensor:
    """Return -s + log 1/M sum exp(s_noise - log q), (...) nats.

    The result is -log p(w | c) with Z_c estimated from M noise words.

    Args:
        s: scores of the words of the text, (...).
        s_noise: scores of the noise words, (..., M).
        log_q_noise: log q(w) of the noise words, (..., M).
    """
    weights = s_noise - log_q_noise
    return weights.logsumexp(-1) - math.log(weights.shape[-1]) - s


def noise_loss(objective: str, s: Tensor, s_noise: Tensor, log_q: Tensor, log_q_noise: Tensor, k: int) -> Tensor:
    """Return the loss ``objective``, (...) nats, computed from noise words.

    Args:
        objective: ``nce``, ``negative_sampling`` or ``importance_sampling``.
        s: scores of the words of the text, (...).
        s_noise: scores of the noise words, (..., M).
        log_q: log q(w) of the words of the text, (...).
        log_q_noise: log q(w) of the noise words, (..., M).
        k: number of noise words for each word of the text. NCE and negative sampling give each of the M noise words
            the weight k / M.
    """
    if objective == "importance_sampling":
        return importance_sampled_loss(s, s_noise, log_q_noise)
    shift = (log_q + math.log(k), log_q_noise + math.log(k))
    log_kq, log_kq_noise = shift if objective == "nce" else map(torch.zeros_like, shift)  # negative_sampling: zeros
    return nce_loss(s, s_noise, log_kq, log_kq_noise, each=k / log_q_noise.shape[-1])


class NoiseDistribution(NamedTuple):
    """A distribution q over V words. The alias method draws in constant time (Walker 1977; Vose 1991).

    A draw first picks one of V columns i, each with probability 1 / V. The result is word i with probability
    ``share[i]``, and word ``alias[i]`` with probability 1 - ``share[i]``. ``log_q`` is in nats. All three fields are
    (V,).
    """

    log_q: Tensor
    share: Tensor
    alias: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> "NoiseDistribution":
        """Return the distribution q proportional to positive ``weights`` (V,)."""
        weights = weights.cpu().double()
        q = weights / weights.sum()
        column = (q * len(q)).tolist()
        share, alias = [1.0] * len(column), list(range(len(column)))
        poor = [i for i, mass in enumerate(column) if mass < 1]
        rich = [i for i, mass in enumerate(column) if mass >= 1]
        while poor and rich:
            i, j = poor.pop(), rich[-1]
            share[i], alias[i] = column[i], j
            column[j] -= 1 - column[i]  # word j fills the rest of column i
            if column[j] < 1:
                poor.append(rich.pop())
        return cls(q.log().float(), torch.tensor(share), torch.tensor(alias))

    def draw(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Return words drawn from q, (*shape), on the device of q.

        The random numbers come from the device of ``generator``.
        """
        where = self.share.device if generator is None else generator.device
        column = torch.randint(len(self.share), shape, generator=generator, device=where).to(self.share.device)
        u = torch.rand(shape, generator=generator, device=where).to(self.share.device)
        return torch.where(u < self.share[column], column, self.alias[column])


class HeldOut(Metric):
    """Metrics of p(w | c) on held-out text, with Z_c summed over the whole vocabulary.

    The state holds sums over pairs and over centres, in float64 for models of any precision. If the model's device has
    no float64, the state is on the CPU.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        def moved(t: Tensor) -> Tensor:  # moves the state to the device and does not round it
            return t.to(float64_device(fn(torch.empty(0, device=t.device)).device))

        return super()._apply(moved, exclude_state)

    def update(self, log_p: Tensor, log_Z: Tensor) -> None:
        """Add log p(w | c) of pairs, (P,), and log Z_c of centres, (n,), in nats.

        On a GPU with float64, the update does not wait for the GPU.
        """
        log_p, log_Z = in_float64(log_p), in_float64(log_Z)
        pairs, centres = (log_p.new_full((), len(t)) for t in (log_p, log_Z))
        sums = torch.stack([pairs, -log_p.sum(), centres, log_Z.sum(), log_Z.square().sum()])
        self.sums = self.sums + sums.to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Returns:
            nll           mean of -log p(w | c), nats per pair
            perplexity    exp(nll)
            log_Z         mean of log Z_c over centres, nats
            log_Z_sd      standard deviation of log Z_c over centres, nats
        """
        pairs, nll, n, first, second = self.sums.tolist()
        nll, mean = nll / max(1, pairs), first / max(1, n)
        sd = max(0.0, second / max(1, n) - mean**2) ** 0.5
        perplexity = float(torch.tensor(nll).exp())  # infinite for diverged scores, where math.exp raises an error
        return {"nll": nll, "perplexity": perplexity, "log_Z": mean, "log_Z_sd": sd}


def encode_words(words: list[str]) -> Tensor:
    """Return words as a uint8 tensor of UTF-8 text with one word in each line. A state_dict can hold the tensor."""
    return torch.frombuffer(bytearray("\n".join(words).encode()), dtype=torch.uint8)


def decode_words(spelling: Tensor) -> list[str]:
    """Return the words of a tensor from :func:`encode_words`."""
    return bytes(spelling.tolist()).decode().split("\n")


class UnknownWord(KeyError, UserError):
    """A word is not in the vocabulary. The message suggests words with a similar spelling."""

    __str__ = Exception.__str__  # KeyError.__str__ would put the message in quotes

    @classmethod
    def of(cls, word: str, words: list[str]) -> "UnknownWord":
        """Return the error for ``word``, which is not one of ``words``."""
        close = [w for form in (word.lower(), word) for w in difflib.get_close_matches(form, words, n=5)]
        hint = f"; close to it: {', '.join(dict.fromkeys(close))}" if close else ""
        return cls(f"{word!r} is not among the {len(words):,} words of the vocabulary{hint}")
