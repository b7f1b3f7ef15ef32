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

The objectives are in zoo/functional/contrastive.py. NCE's probabilities sum to about one by themselves: log Z_c is
logged.

Symbols: v_c input vectors (V, D), u_w output vectors (V, D), b_w output biases (V,); q noise distribution, unigram
counts to the power alpha; k noise words per pair. All in nats per pair.
Logged: {train,val,test}/loss, the objective; {val,test}/nll, -log p(w | c) summed over the whole vocabulary, and
/perplexity, its exponential; /log_Z and /log_Z_sd, mean and standard deviation of log Z_c over the words of the text;
all four of rows spread over the held-out text.

Differs from the papers:
- The 32 centres of a row share M = ``shared_noise`` noise words, each counted k / M times: the expected gradient is
  that of k words per pair, and matrix products replace look-ups. Importance sampling estimates Z_c from all M.
  ``shared_noise=0`` draws k for every pair, as word2vec does.
- Gradients of a batch are taken at once and summed over its pairs; word2vec takes one pair after the other. Against
  sums of many that overshoot, the learning rate of a word of which a step has n pairs on average is at most
  ``LONGEST_STEP`` / n; for output vectors the k noise words of each pair count as pairs. With subsampling that
  concerns some of the most frequent words; in a vocabulary of a few, all. It makes no learning rate safe: vectors that
  grow long still diverge under a large one.
- Input vectors begin sqrt(D) times as large as word2vec's, from which NCE leaves the scores of the biases late: on
  65,000 words, 15 epochs end at 6.94 nats per held-out pair so, and at 6.73 as here.
- Windows reach over the places of words left out by subsampling and for rarity, as in word2vec.
- Negative sampling has no biases. Those of the other objectives begin at the log frequency of words in training pairs,
  where s = b has Z_c = 1.
"""

import math
from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checks.capabilities import TextData
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, rows_of_text, takes, whole_numbers_below
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_whole
from zoo.estimators import GradientEstimator, Noise
from zoo.functional import contrastive
from zoo.functional.contrastive import ROW, HeldOut, Lookup, NoiseDistribution, Rows, UnknownWord, dense, sparse
from zoo.functional.densities import at_least_float32
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import never_rounded
from zoo.nets.description import described
from zoo.training.files import save_word2vec

OBJECTIVES = ("nce", "negative_sampling", "importance_sampling", "softmax")
LEAST_RATE = 1e-4  # share of the learning rate that is left at the end of a run
LONGEST_STEP = 1.0  # learning rate times pairs of one word that a step adds up, at most
PUBLISHED_WORDS = 20_000
A_WORD = whole_numbers_below(lambda self: len(self.words), axes=0)
EXACT_ROWS = 256  # of a validation, about, spread evenly over the text: for them the whole vocabulary is summed


@described
@accepts_old_form("noise", "loss")
@checks_inputs(batch=rows_of_text)
@never_rounded("noise_log_q", "noise_share", "share_input", "share_output")
class SkipGram(L.LightningModule):
    """The model, its training and its uses. The vocabulary is that of the data, or of the weights that are loaded.

    Args:
        objective: ``nce``, ``negative_sampling``, ``importance_sampling`` or ``softmax``, which sums over the
            vocabulary for every pair and is for small ones.
        dim: D.
        num_noise: k, noise words per pair.
        alpha: the power of the unigram counts that the noise is drawn by, 0 (uniform) to 1.
        shared_noise: M, noise words that the centres of a row share; 0 gives each pair its own k.
        lr: of stochastic gradient descent, for one pair; it falls to nothing along a line.

    Raises:
        UserError: for a value outside these.
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
        if alpha > 1:
            raise UserError(f"alpha must be at most 1, got {alpha!r}")
        check_whole("shared_noise", shared_noise, least=0)
        check_positive("lr", lr)
        self.save_hyperparameters()
        self.words: list[str] = []
        self.held_out = HeldOut()
        self.register_load_state_dict_pre_hook(_make_room)

    def make_vocabulary(self, words: list[str], counts: Tensor, keep: Tensor) -> None:
        """Begin anew with ``words``, of which ``counts`` (V,) are in the text and the share ``keep`` (V,) trained on.

        Input vectors begin uniform within 1 / (2 sqrt(D)) of 0, output vectors at 0.
        """
        V, D = len(words), self.hparams.dim
        frequency = counts.double() * keep.double()
        begin = {"input": (torch.rand(V, D) - 0.5) / D**0.5, "output": torch.zeros(V, D)}
        if self.hparams.objective != "negative_sampling":
            begin["bias"] = (frequency / frequency.sum()).log().float()[:, None]
        tables = {name: nn.Embedding.from_pretrained(table, freeze=False) for name, table in begin.items()}
        self._hold(contrastive.spelled(words), counts.long(), tables)

    def _hold(self, spelling: Tensor, counts: Tensor, tables: dict[str, nn.Embedding]) -> None:
        self.register_buffer("spelling", spelling)
        self.register_buffer("counts", counts.clone())
        for name, table in tables.items():
            setattr(self, name, table)
        self.words = contrastive.words_of(spelling)
        self.index = {word: i for i, word in enumerate(self.words)}
        noise = NoiseDistribution.of(self.counts.cpu().double() ** self.hparams.alpha)
        for name, values in noise._asdict().items():
            self.register_buffer(f"noise_{name}", values.to(self.counts.device), persistent=False)

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """``input`` (V, D), ``output`` (V, D) and ``bias`` (V, 1), those of them that this model has."""
        return {name: m for name, m in self.named_children() if isinstance(m, nn.Embedding)}

    @property
    def predicts(self) -> bool:
        """Whether there are output vectors; published weights have none."""
        return "output" in self.tables

    def limit_rates(self, pairs: float, frequency: Tensor) -> None:
        """Prepare for steps of ``pairs`` pairs, on average, of words that come with ``frequency`` (V,)."""
        q = self.q.log_q.cpu().double().exp()
        noise = 0 if self.hparams.objective == "softmax" else self.hparams.num_noise * q
        for name, expected in {"input": pairs * frequency, "output": pairs * (frequency + noise)}.items():
            share = (LONGEST_STEP / (self.hparams.lr * expected)).clamp(max=1).float()
            self.register_buffer(f"share_{name}", share[:, None].to(self.device), persistent=False)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if not isinstance(data, TextData):
            raise UserError(
                "SkipGram is trained with fit(model, datamodule=...): it takes its words from zoo.datamodules.Text"
            )
        counts = torch.from_numpy(data.corpus.counts)
        if not self.words:
            self.make_vocabulary(data.corpus.words, counts, data.keep)
        self.check_vocabulary(data.corpus.words)
        # DistributedDataParallel asks the modules. NCCL reduces only dense gradients; a whole softmax has no others.
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        for table in self.tables.values():
            table.sparse = on_cpu and self.hparams.objective != "softmax"
        kept = counts.double() * data.keep.double()
        rows = data.hparams.batch_size * self.trainer.accumulate_grad_batches
        pairs = rows * ROW * (data.hparams.window + 1)  # (1 + window) / 2 to either side, on average
        self.limit_rates(pairs, kept / kept.sum())

    def check_vocabulary(self, words: list[str]) -> None:
        """Refuse a text of other ``words`` than the model's, and weights that can predict none.

        Raises:
            UserError: saying which.
        """
        if not self.predicts:
            raise UserError("these weights are input vectors alone, which predict nothing: take those of a run")
        if self.words != words:
            raise UserError(
                f"the model has a vocabulary of {len(self.words):,} words, and the text another one, of "
                f"{len(words):,}: choose the text and the options that it was trained with"
            )

    @property
    def q(self) -> NoiseDistribution:
        """The noise distribution."""
        return NoiseDistribution(self.noise_log_q, self.noise_share, self.noise_alias)

    # Scores.

    @takes(centres=A_WORD, words=A_WORD)
    def scores(self, centres: Tensor, words: Tensor, lookup: Lookup = dense) -> Tensor:
        """s(w, c) of every centre (B, C) and every word (B, M) of a row, (B, C, M)."""
        v, u = (at_least_float32(lookup(*t)) for t in ((self.input.weight, centres), (self.output.weight, words)))
        s = v @ u.transpose(-1, -2)
        return s + lookup(self.bias.weight, words).transpose(-1, -2) if "bias" in self.tables else s

    @takes(centres=A_WORD)
    def all_scores(self, centres: Tensor) -> Tensor:
        """s(w, c) of centres (...) and the whole vocabulary, (..., V)."""
        s = at_least_float32(self.input.weight[centres]) @ at_least_float32(self.output.weight).T
        return s + self.bias.weight[:, 0] if "bias" in self.tables else s

    def pair_losses(
        self, rows: Rows, noise: Tensor, objective: str, k: int, lookup: Lookup = dense
    ) -> tuple[Tensor, Tensor]:
        """The objective of each centre and each word around it, nats, and which of these are pairs.

        Args:
            rows: see datamodules/text.py.
            noise: noise words of each row, (B, M), or of each pair, (B, 32, 2 window + 1, k).

        Returns:
            (B, 32, 2 window + 1), and the same as booleans.
        """
        centres, _, taken = contrastive.within_reach(rows)
        centres, words = centres.clamp(min=0), rows.words.clamp(min=0)  # where there is none, nothing is taken
        n, own = words.shape[1], noise.ndim == 4
        every = self.scores(centres, words if own else torch.cat([words, noise], 1), lookup)
        s = contrastive.around_each(every, taken.shape[-1])
        if objective == "softmax":
            return contrastive.softmax_loss(s, self.all_scores(centres)[:, :, None]), taken
        if own:
            u = at_least_float32(lookup(self.output.weight, noise))
            s_noise = (u @ at_least_float32(lookup(self.input.weight, centres))[:, :, None, :, None])[
                ..., 0
            ]  # (..., k)
            s_noise = s_noise + lookup(self.bias.weight, noise)[..., 0] if "bias" in self.tables else s_noise
        else:
            s_noise, noise = every[:, :, None, n:], noise[:, None, None]  # (B, 32, 1, M), (B, 1, 1, M)
        log_q, log_q_noise = self.noise_log_q[words].unfold(-1, taken.shape[-1], 1), self.noise_log_q[noise]
        return contrastive.noise_loss(objective, s, s_noise, log_q, log_q_noise, k), taken

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, *, generator: torch.Generator | None = None, k: int | None = None) -> dict[str, Tensor]:
        """``noise``: words for each row, (B, M), or for each pair, (B, 32, 2 window + 1, k), if none are shared."""
        words, k = batch[0], self.hparams.num_noise if k is None else k
        window = (words.shape[1] - ROW) // 2
        own = (ROW, 2 * window + 1, k) if self.hparams.shared_noise == 0 else (self.hparams.shared_noise,)
        return {"noise": self.q.draw(len(words), *own, generator=generator)}

    def loss(self, batch, *, generator: torch.Generator | None = None, lookup: Lookup = dense) -> dict[str, Tensor]:
        """``loss``: the objective of the pairs of a batch, nats per pair; ``pairs``: how many there are."""
        noise = self.noise(batch, generator=generator)["noise"]
        objective, k = self.hparams.objective, self.hparams.num_noise
        losses, taken = self.pair_losses(Rows(*batch), noise, objective, k, lookup)
        pairs = taken.sum()
        return {"loss": (losses * taken).sum() / pairs.clamp(min=1), "pairs": pairs}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch, lookup=sparse if self.input.sparse else dense)
        self.log("train/loss", terms["loss"], prog_bar=True)
        # The rate is that of one pair: a step adds up what its pairs ask for, no mean over processes and batches.
        return terms["loss"] * terms["pairs"] * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer):
        for name, table in self.tables.items():
            share, gradient = self.share_input if name == "input" else self.share_output, table.weight.grad
            if gradient.is_sparse:
                gradient._values().mul_(share[gradient._indices()[0]])
            else:
                gradient.mul_(share)

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        total = max(1, self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(LEAST_RATE, 1 - step / total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Measuring.

    @torch.no_grad()
    def pair_log_likelihood(self, batch) -> tuple[Tensor, Tensor]:
        """log p(w | c) of each pair, summed over the whole vocabulary, and log Z_c of each centre; nats, (P,) and (n,).

        For negative sampling, whose scores are no log probabilities, too: what they say when they are normalised.
        """
        centres, around, taken = contrastive.within_reach(Rows(*batch))
        present = centres >= 0
        s = self.all_scores(centres[present])  # (n, V)
        log_Z = s.logsumexp(-1)
        log_p = s.gather(-1, around[present].clamp(min=0)) - log_Z[:, None]
        return log_p[taken[present]], log_Z

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.loss(batch, generator=generator)
        self.log(f"{stage}/loss", terms["loss"], batch_size=int(terms["pairs"]), sync_dist=True, prog_bar=True)
        at_once, world_size = self.trainer.datamodule.hparams.eval_batch_size, self.trainer.world_size
        batches = self.trainer.num_test_batches if stage == "test" else self.trainer.num_val_batches
        every = max(1, int(batches[0]) * at_once // EXACT_ROWS)
        first = batch_idx * at_once + self.global_rank
        number = first + world_size * torch.arange(len(batch[0]))  # in the text's order
        chosen = (number % every == 0).nonzero()[:, 0].to(self.device)
        for row in chosen.split(1):  # 32 centres times the vocabulary are much already
            self.held_out.update(*self.pair_log_likelihood([t[row] for t in batch]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def on_validation_epoch_start(self):
        self.held_out.reset()  # an evaluation that was interrupted leaves its sums

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self, stage="val"):
        self.log_dict({f"{stage}/{k}": v for k, v in self.held_out.compute().items()}, sync_dist=True)

    def on_test_epoch_end(self):
        self.on_validation_epoch_end(stage="test")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "skipgram"

    # What it is for.

    def number(self, word: str) -> int:
        """The place of ``word`` in the vocabulary, 0 for the most frequent.

        Raises:
            UnknownWord: a KeyError, for a word that is not in it, with those that are spelled nearly so.
        """
        if not isinstance(word, str):
            raise UserError(f"a word must be a string, got {word!r}")
        if word not in self.index:
            raise UnknownWord.of(word, self.words)
        return self.index[word]

    def vector(self, word: str) -> Tensor:
        """The input vector of ``word``, (D,). Raises KeyError as :meth:`number` does."""
        return self.input.weight[self.number(word)].detach()

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """The ``n`` words whose input vectors have the largest cosine with that of ``word``, and these cosines.

        Raises:
            KeyError: as :meth:`number` does.
        """
        unit = self.unit_vectors()
        return self._most_similar(unit, unit[self.number(word)], [word], n)

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]:
        """What is to ``c`` as ``b`` is to ``a``: queen, for man, woman, king.

        The words with the largest cosines with b - a + c, of vectors of length 1, other than these three (Mikolov et
        al. 2013a), and these cosines. KeyError as :meth:`number` raises it.
        """
        unit = self.unit_vectors()
        x, y, z = (unit[self.number(word)] for word in (a, b, c))
        return self._most_similar(unit, F.normalize(y - x + z, dim=0), [a, b, c], n)

    def unit_vectors(self) -> Tensor:
        """The input vectors, scaled to length 1; (V, D)."""
        return F.normalize(at_least_float32(self.input.weight.detach()), dim=1)

    def _most_similar(self, unit: Tensor, x: Tensor, besides: list[str], n: int) -> list[tuple[str, float]]:
        check_whole("n", n)
        cosines = unit @ x
        cosines[[self.number(word) for word in besides]] = -math.inf
        top = cosines.topk(min(n, len(self.words) - len(set(besides))))
        return [(self.words[i], cosine) for cosine, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]

    def export(self, path: str | Path, binary: bool = False) -> None:
        """Write words and input vectors in the word2vec text or binary format: see zoo.training.files.save_word2vec."""
        save_word2vec(self.words, self.input.weight, Path(path), binary)

    def published(self) -> dict[str, Tensor]:
        """What is shipped of a trained model: the input vectors of its 20,000 most frequent words, as float16."""
        return {
            "spelling": contrastive.spelled(self.words[:PUBLISHED_WORDS]),
            "counts": self.counts[:PUBLISHED_WORDS].clone(),
            "input.weight": self.input.weight.detach()[:PUBLISHED_WORDS].half(),
        }

    # How its gradient can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``softmax``, the gradient of the likelihood itself, without noise; ``nce_<k>`` at k = 1, 5 and 25, which
        tends to it; ``importance_sampling``, of the shared noise words or else the model's k, likewise; and
        ``negative_sampling`` at the model's k, which is another one."""
        params = dict(self.named_parameters())

        def estimator(name: str, objective: str, k: int) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                losses, taken = self.pair_losses(Rows(*batch), noise["noise"], objective, k)
                return (losses * taken).sum() / taken.sum()

            return GradientEstimator.of(self, name, params, partial(self.noise, k=k), loss)

        k = self.hparams.num_noise
        kinds = {"softmax": ("softmax", k)} | {f"nce_{n}": ("nce", n) for n in (1, 5, 25)}
        kinds |= {name: (name, k) for name in ("negative_sampling", "importance_sampling")}
        return {name: estimator(name, *kind) for name, kind in kinds.items()}


def _make_room(model: SkipGram, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Before weights are loaded: a vocabulary as large as theirs, under the same spelling.

    Raises:
        UserError: if the model has another one already.
    """
    if model.words and not torch.equal(state_dict.get(f"{prefix}spelling", model.spelling), model.spelling):
        theirs = len(contrastive.words_of(state_dict[f"{prefix}spelling"]))
        raise UserError(
            f"the weights have a vocabulary of {theirs:,} words, and the text another one, of {len(model.words):,}: go "
            "on with the text and the options that they were trained with"
        )
    if not model.words and f"{prefix}spelling" in state_dict:
        weights = {name: state_dict.get(f"{prefix}{name}.weight") for name in ("input", "output", "bias")}
        tables = {name: nn.Embedding(*weight.shape) for name, weight in weights.items() if weight is not None}
        model._hold(state_dict[f"{prefix}spelling"].clone(), state_dict[f"{prefix}counts"], tables)
