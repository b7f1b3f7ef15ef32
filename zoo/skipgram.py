"""Skip-gram: vectors of words that predict the words around them, learned by telling text from noise.

Mikolov et al. 2013a, arXiv:1301.3781 and 2013b, arXiv:1310.4546 (word2vec, negative sampling); Mnih & Teh 2012,
arXiv:1206.6426, and Mnih & Kavukcuoglu 2013 (NCE); seed 000, "Noise Contrastive Estimation"; seed 004, 15.1
(perplexity).

    p(w | c) = exp(s(w, c)) / Z_c        s(w, c) = u_w' v_c + b_w
    c a word of the text, w one of those within its reach (datamodules/text.py)

    nce                   -log sigma(s - log k q) of (c, w), - log sigma(log k q - s) of each of k noise words w_i ~ q
    negative_sampling     the same without log k q and without b: vectors, not probabilities
    importance_sampling   -log p(w | c), Z_c estimated from the noise words
    softmax               -log p(w | c), Z_c summed over the vocabulary

The objectives are in zoo/contrastive.py. NCE gives probabilities that sum to about one by themselves: log Z_c is logged.

Symbols: v_c input vectors (V, D), u_w output vectors (V, D), b_w output biases (V,); q noise distribution, unigram counts
to the power alpha; k noise words per pair. All in nats per pair.
Logged: {train,val,test}/loss, the objective; {val,test}/nll, -log p(w | c) summed over the whole vocabulary, and
/perplexity, its exponential; /log_Z and /log_Z_sd, mean and standard deviation of log Z_c over the words of the text, of
the first rows of each validation.

Differs from the papers:
- The 32 centres of a row share ``shared_noise`` noise words, each counted k / M times: the expected gradient is that of k
  words per pair, and matrix products replace look-ups. ``shared_noise=0`` draws k for every pair, as word2vec does.
- Gradients of a batch are taken at once and summed over its pairs; word2vec takes one pair after the other.
- Windows reach over the places of words left out by subsampling and for rarity, as in word2vec.
- Negative sampling has no biases. Those of the other objectives begin at the log frequency of words in training pairs,
  where s = b has Z_c = 1.
"""

import difflib
import math
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.text import ROW, Rows, within_reach
from zoo import contrastive
from zoo.configuration import check_choice, check_not_negative, check_positive, check_whole
from zoo.estimators import GradientEstimator, Params
from zoo.sampling import chunk_generator

OBJECTIVES = ("nce", "negative_sampling", "importance_sampling", "softmax")
LEAST_RATE = 1e-4  # share of the learning rate that is left at the end of a run
EXACT_ROWS = 64  # of each validation, at most, on which whole vocabularies are summed


Lookup = Callable[[Tensor, Tensor], Tensor]  # rows of a table (V, D) by numbers (...), (..., D)


def dense(table: Tensor, numbers: Tensor) -> Tensor:
    """Rows of a table, differentiable as any other function."""
    return table[numbers]


def sparse(table: Tensor, numbers: Tensor) -> Tensor:
    """The same with a gradient that holds the rows that were looked up, and no others."""
    return F.embedding(numbers, table, sparse=True)


class SkipGram(L.LightningModule):
    """The model, its training and its uses. The vocabulary is that of the data, or of the weights that are loaded.

    Args:
        objective: ``nce``, ``negative_sampling``, ``importance_sampling`` or ``softmax``, which sums over the vocabulary
            for every pair and is for small ones.
        dim: D.
        num_noise: k, noise words per pair.
        alpha: the power of the unigram counts that the noise is drawn by, 0 (uniform) or more.
        shared_noise: M, noise words that the centres of a row share; 0 gives each pair its own k.
        lr: of stochastic gradient descent, for one pair; it falls to nothing along a line.

    Raises:
        ValueError: for a value outside these.
    """

    def __init__(
        self,
        objective: str = "nce",
        dim: int = 100,
        num_noise: int = 5,
        alpha: float = 0.75,
        shared_noise: int = 32,
        lr: float = 0.025,
    ):
        super().__init__()
        check_choice("objective", objective, OBJECTIVES)
        check_whole("dim", dim)
        check_whole("num_noise", num_noise)
        check_not_negative("alpha", alpha)
        check_whole("shared_noise", shared_noise, least=0)
        check_positive("lr", lr)
        self.save_hyperparameters()
        self.words: list[str] = []
        self.register_load_state_dict_pre_hook(_make_room)

    def make_vocabulary(self, words: list[str], counts: Tensor, keep: Tensor) -> None:
        """Begin anew with ``words``, of which ``counts`` (V,) are in the text and the share ``keep`` (V,) is trained on.

        Input vectors begin uniform within 1 / 2 D of 0 and output vectors at 0, as in word2vec.
        """
        V, D = len(words), self.hparams.dim
        spelled = torch.frombuffer(bytearray("\n".join(words).encode()), dtype=torch.uint8)
        self.register_buffer("spelling", spelled)
        self.register_buffer("counts", counts.long().clone())
        frequency = counts.double() * keep.double()
        self.input = nn.Parameter((torch.rand(V, D) - 0.5) / D)
        self.output = nn.Parameter(torch.zeros(V, D))
        if self.hparams.objective != "negative_sampling":
            self.bias = nn.Parameter((frequency / frequency.sum()).log().float()[:, None])
        self._remember()

    def _remember(self) -> None:
        self.words = bytes(self.spelling.tolist()).decode().split("\n")
        self.index = {word: i for i, word in enumerate(self.words)}
        noise = contrastive.Noise.of(self.counts.double() ** self.hparams.alpha)
        for name, values in noise._asdict().items():
            self.register_buffer(f"noise_{name}", values, persistent=False)

    def setup(self, stage: str) -> None:
        corpus = self.trainer.datamodule.corpus
        if not self.words:
            self.make_vocabulary(corpus.words, torch.from_numpy(corpus.counts), self.trainer.datamodule.keep)
        elif self.words != corpus.words:
            raise ValueError(
                f"the model has a vocabulary of {len(self.words):,} words, and the text another one, of "
                f"{len(corpus.words):,}: choose the text and the options that it was trained with"
            )

    @property
    def q(self) -> contrastive.Noise:
        """The noise distribution."""
        return contrastive.Noise(self.noise_log_q, self.noise_share, self.noise_alias)

    # Scores.

    def centre_scores(self, params: Params, centres: Tensor, words: Tensor, lookup: Lookup = dense) -> Tensor:
        """s(w, c) of every centre of a row and every word beside it.

        Args:
            params: ``input``, ``output`` and, where there are biases, ``bias``.
            centres: (B, C).
            words: (B, M).

        Returns:
            (B, C, M).
        """
        v, u = lookup(params["input"], centres), lookup(params["output"], words)
        s = v @ u.transpose(-1, -2)
        return s + lookup(params["bias"], words).transpose(-1, -2) if "bias" in params else s

    def all_scores(self, params: Params, centres: Tensor) -> Tensor:
        """s(w, c) of centres (...) and the whole vocabulary, (..., V)."""
        s = params["input"][centres] @ params["output"].T
        return s + params["bias"][:, 0] if "bias" in params else s

    def pair_losses(
        self, params: Params, rows: Rows, noise: Tensor, objective: str, k: int, lookup: Lookup = dense
    ) -> tuple[Tensor, Tensor]:
        """The objective of each centre and each word around it, nats, and which of these are pairs.

        Args:
            params: see :meth:`centre_scores`.
            rows: see datamodules/text.py.
            noise: noise words of each row, (B, M), or of each pair, (B, 32, 2 window + 1, k).

        Returns:
            (B, 32, 2 window + 1), and the same as booleans.
        """
        centres, around, taken = within_reach(rows)
        centres, around, words = (
            centres.clamp(min=0),
            around.clamp(min=0),
            rows.words.clamp(min=0),
        )  # the rest is masked
        every = self.centre_scores(params, centres, words, lookup)  # (B, 32, window + 32 + window)
        place = torch.arange(ROW, device=words.device)[:, None] + torch.arange(around.shape[-1], device=words.device)
        s = every.gather(-1, place.expand(len(words), -1, -1))
        if objective == "softmax":
            return contrastive.softmax_loss(s, self.all_scores(params, centres)[:, :, None]), taken
        if noise.ndim == 2:
            s_noise = self.centre_scores(params, centres, noise, lookup)[:, :, None]  # (B, 32, 1, M)
            noise = noise[:, None, None]
        else:
            u = lookup(params["output"], noise)
            s_noise = (u @ lookup(params["input"], centres)[:, :, None, :, None])[..., 0]  # (B, 32, 2 window + 1, k)
            s_noise = s_noise + lookup(params["bias"], noise)[..., 0] if "bias" in params else s_noise
        log_q = self.noise_log_q
        if objective == "importance_sampling":
            return contrastive.importance_sampled_loss(s, s_noise, log_q[noise]), taken
        log_kq = log_q + math.log(k) if objective == "nce" else torch.zeros_like(log_q)
        return contrastive.nce_loss(s, s_noise, log_kq[around], log_kq[noise], each=k / noise.shape[-1]), taken

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, generator: torch.Generator | None = None, k: int | None = None) -> dict[str, Tensor]:
        """``noise``: words for each row, (B, M), or for each pair, (B, 32, 2 window + 1, k), if none are shared."""
        words, k = batch[0], self.hparams.num_noise if k is None else k
        window = (words.shape[1] - ROW) // 2
        own = (ROW, 2 * window + 1, k) if self.hparams.shared_noise == 0 else (self.hparams.shared_noise,)
        return {"noise": self.q.draw(len(words), *own, generator=generator)}

    def loss(self, batch, generator: torch.Generator | None = None, lookup: Lookup = dense) -> dict[str, Tensor]:
        """``loss``: the objective of the pairs of a batch, nats per pair; ``pairs``: how many there are."""
        params, noise = dict(self.named_parameters()), self.noise(batch, generator)["noise"]
        objective, k = self.hparams.objective, self.hparams.num_noise
        losses, taken = self.pair_losses(params, Rows(*batch), noise, objective, k, lookup)
        return {"loss": losses[taken].mean(), "pairs": taken.sum()}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch, lookup=sparse)
        self.log("train/loss", terms["loss"], prog_bar=True)
        # The rate is that of one pair: a step adds up what its pairs ask for, on however many processes they are.
        return terms["loss"] * terms["pairs"] * self.trainer.world_size

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        total = max(1, self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(LEAST_RATE, 1 - step / total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Measuring.

    @torch.no_grad()
    def log_likelihood(self, batch) -> tuple[Tensor, Tensor]:
        """log p(w | c) of each pair, summed over the whole vocabulary, and log Z_c of each centre; nats, (P,) and (n,).

        For negative sampling, whose scores are no log probabilities, too: what they say when they are normalised.
        """
        centres, around, taken = within_reach(Rows(*batch))
        present = centres >= 0
        s = self.all_scores(dict(self.named_parameters()), centres[present])  # (n, V)
        log_Z = s.logsumexp(-1)
        log_p = s.gather(-1, around[present].clamp(min=0)) - log_Z[:, None]
        return log_p[taken[present]], log_Z

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.loss(batch, generator)
        self.log(f"{stage}/loss", terms["loss"], batch_size=int(terms["pairs"]), sync_dist=True, prog_bar=True)
        left = EXACT_ROWS - batch_idx * len(batch[0])
        if left > 0:
            log_p, log_Z = self.log_likelihood([t[:left] for t in batch])
            sums = [len(log_p), -log_p.sum(), len(log_Z), log_Z.sum(), log_Z.square().sum()]
            self.exact = self.exact + torch.tensor(sums, dtype=torch.float64, device=self.device)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def on_validation_epoch_start(self):
        self.exact = torch.zeros(5, dtype=torch.float64, device=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self, stage="val"):
        pairs, nll, n, first, second = self.trainer.strategy.reduce(self.exact, reduce_op="sum").tolist()
        nll, mean = nll / max(1, pairs), first / max(1, n)
        sd = max(0.0, second / max(1, n) - mean**2) ** 0.5
        exact = {"nll": nll, "perplexity": math.exp(nll), "log_Z": mean, "log_Z_sd": sd}
        self.log_dict({f"{stage}/{name}": value for name, value in exact.items()})

    def on_test_epoch_end(self):
        self.on_validation_epoch_end(stage="test")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "skipgram"

    # What it is for.

    def number(self, word: str) -> int:
        """The place of ``word`` in the vocabulary, 0 for the most frequent.

        Raises:
            KeyError: for a word that is not in it, with those that are spelled nearly so.
        """
        if word not in self.index:
            close = difflib.get_close_matches(word, self.words, n=5)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise KeyError(f"{word!r} is not among the {len(self.words):,} words of the vocabulary{hint}")
        return self.index[word]

    def vector(self, word: str) -> Tensor:
        """The input vector of ``word``, (D,). Raises KeyError as :meth:`number` does."""
        return self.input[self.number(word)].detach()

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """The ``n`` words whose input vectors have the largest cosine with that of ``word``, and these cosines."""
        return self._most_similar(self.unit_vectors()[self.number(word)], [word], n)

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]:
        """What is to ``c`` as ``b`` is to ``a``: king, for man, woman, queen. The largest cosines with b - a + c, of unit
        vectors, among other words than these three (Mikolov et al. 2013a)."""
        unit = self.unit_vectors()
        x, y, z = (unit[self.number(word)] for word in (a, b, c))
        return self._most_similar(F.normalize(y - x + z, dim=0), [a, b, c], n)

    def unit_vectors(self) -> Tensor:
        """The input vectors, scaled to length 1; (V, D)."""
        return F.normalize(self.input.detach(), dim=1)

    def _most_similar(self, x: Tensor, besides: list[str], n: int) -> list[tuple[str, float]]:
        check_whole("n", n)
        cosines = self.unit_vectors() @ x
        cosines[[self.number(word) for word in besides]] = -math.inf
        top = cosines.topk(min(n, len(self.words) - len(set(besides))))
        return [(self.words[i], cosine) for cosine, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]

    # How its gradient can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``nce_<k>`` at k = 1, 5 and 25, ``negative_sampling``, ``importance_sampling`` at the model's k, and ``softmax``,
        the gradient of the likelihood itself, without noise, which they stand for."""
        params = {
            k: p for k, p in self.named_parameters() if k != "bias" or self.hparams.objective != "negative_sampling"
        }

        def estimator(name: str, objective: str, k: int) -> GradientEstimator:
            def surrogate(params: Params, batch, noise) -> Tensor:
                losses, taken = self.pair_losses(params, Rows(*batch), noise["noise"], objective, k)
                return (losses * taken).sum() / taken.sum()

            return GradientEstimator(name, params, partial(self.noise, k=k), surrogate)

        k = self.hparams.num_noise
        found = [estimator("softmax", "softmax", k)]
        found += [estimator(f"nce_{n}", "nce", n) for n in (1, 5, 25)]
        found += [estimator(name, name, k) for name in ("negative_sampling", "importance_sampling")]
        return {e.name: e for e in found}


def _make_room(model: SkipGram, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Before weights are loaded: a vocabulary as large as theirs, under the same spelling."""
    if not model.words and f"{prefix}spelling" in state_dict:
        for name in ("spelling", "counts"):
            model.register_buffer(name, state_dict[prefix + name].clone())
        for name in ("input", "output", "bias"):
            if prefix + name in state_dict:
                setattr(model, name, nn.Parameter(torch.empty_like(state_dict[prefix + name])))
        model._remember()
