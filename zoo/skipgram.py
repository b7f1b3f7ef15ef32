"""Skip-gram: word vectors that predict neighbouring words. Training contrasts words of the text with noise words.

Papers: Mikolov et al. 2013a, arXiv:1301.3781, and 2013b, arXiv:1310.4546 (word2vec, negative sampling); Mnih & Teh
2012, arXiv:1206.6426, and Mnih & Kavukcuoglu 2013 (NCE). Lecture notes: [Xu18b], "Noise Contrastive Estimation", and
[DSL 15.1] (perplexity). docs/references.md explains the keys in brackets.

A pair is a word c of the text, the centre, and a word w in its window (datamodules/text.py). The model is

    p(w | c) = exp(s(w, c)) / Z_c,    s(w, c) = u_w' v_c + b_w                                  SkipGram.scores

The objectives are in zoo/functional/contrastive.py. All except softmax draw k noise words w_i ~ q, with scores s_i:

    nce                   -log sigma(s - log k q) - sum_i log sigma(log k q - s_i)    nce_loss, summed_nce_loss
    negative_sampling     nce without log k q and b; learns no probabilities                    noise_loss
    importance_sampling   -log p(w | c), with Z_c estimated from the noise words                importance_sampled_loss
    softmax               -log p(w | c), with Z_c summed over the vocabulary                    softmax_loss

NCE learns scores with log Z_c close to 0. The metric log_Z below shows how close.

Symbols:
    v_c, u_w, b_w   input vectors (V, D), output vectors (V, D) and output biases (V,) of V words
    q               noise distribution: unigram counts to the power alpha, normalised
    k               noise words per pair

Logged with the prefixes val/ and test/. Training logs only train/loss.
    loss         mean of the objective, nats per pair
    nll          mean of -log p(w | c), nats per pair; perplexity is exp(nll)
    log_Z        mean of log Z_c over centres, nats; log_Z_sd is the standard deviation
For all metrics except ``loss``, Z_c is summed over the whole vocabulary, also for negative sampling. These metrics use
about 256 rows of 32 centres, spread evenly over the held-out text.

Differs from the papers:
- The 32 centres of a row share M = ``shared_noise`` noise words, each with the weight k / M. word2vec draws k words
  for every pair (``shared_noise=0``). Sharing is faster and does not change the expected gradient of NCE and negative
  sampling. Importance sampling estimates Z_c from all M words.
- A step sums the gradients of all pairs of a batch. word2vec makes one step for each pair. Sums over many pairs can
  overshoot. The learning rate of a word with n expected pairs per step is therefore at most ``LONGEST_STEP`` / n. For
  output vectors, noise words also count as pairs. With subsampling, the limit affects some of the most frequent words.
  In a vocabulary of a few words, the limit affects all words. Large learning rates can still diverge.
- Input vectors start sqrt(D) times larger than in word2vec, because NCE then learns faster. After 15 epochs on 65,000
  words, the held-out nll is 6.73. With the initial values of word2vec, it is 6.94.
- Negative sampling has no biases. For other objectives, s starts at b_w, the log frequency of w. Then Z_c = 1.
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
from zoo.checks.inputs import checks_inputs, integers_below, rows_of_text, takes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_integer, check_not_negative, check_positive
from zoo.estimators import GradientEstimator, Noise
from zoo.functional import contrastive
from zoo.functional.contrastive import ROW, HeldOut, Lookup, NoiseDistribution, Rows, UnknownWord, dense, sparse
from zoo.functional.densities import at_least_float32
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import keep_float32
from zoo.nets.description import described
from zoo.training.files import keyed_vectors, save_word2vec
from zoo.training.optimisers import scheduled

OBJECTIVES = ("nce", "negative_sampling", "importance_sampling", "softmax")
LEAST_RATE = 1e-4  # learning rate at the end of a run, as a fraction of ``lr``
LONGEST_STEP = 1.0  # largest product of a word's learning rate and its expected pairs per step
PUBLISHED_WORDS = 20_000
A_WORD = integers_below(lambda self: len(self.words), axes=0)
EXACT_ROWS = 256  # approximate number of held-out rows for the metrics with an exact Z_c


@described
@accepts_old_form("noise", "loss")
@checks_inputs(batch=rows_of_text)
@keep_float32("noise_log_q", "noise_share", "share_input", "share_output")
class SkipGram(L.LightningModule):
    """Skip-gram model of words. Its vocabulary comes from the training data or from loaded weights.

    Args:
        objective: ``nce``, ``negative_sampling``, ``importance_sampling`` or ``softmax``. ``softmax`` sums over the
            vocabulary for every pair, so it suits small vocabularies.
        dim: D, dimensions of the vectors.
        num_noise: k, noise words per pair.
        alpha: Power of the unigram counts in the noise distribution, 0 (uniform) to 1.
        shared_noise: M, noise words that the 32 centres of a row share. 0 draws k separate words for each pair.
        lr: Learning rate of SGD per pair, which decays linearly to 1e-4 of its first value over the run.

    Raises:
        UserError: If an argument has a value that is not allowed.
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
        check_integer("dim", dim)
        check_integer("num_noise", num_noise)
        check_not_negative("alpha", alpha)
        if alpha > 1:
            raise UserError(f"alpha must be at most 1, got {alpha!r}")
        check_integer("shared_noise", shared_noise, least=0)
        check_positive("lr", lr)
        self.save_hyperparameters()
        self.words: list[str] = []
        self.held_out = HeldOut()
        self.register_load_state_dict_pre_hook(_take_vocabulary)

    def make_vocabulary(self, words: list[str], counts: Tensor, keep: Tensor | None = None) -> None:
        """Create vectors for ``words`` with ``counts`` (V,), of which subsampling keeps the fractions ``keep`` (V,).

        Input vectors start uniform in [-1 / (2 sqrt(D)), 1 / (2 sqrt(D))]. Output vectors start at 0.
        """
        V, D = len(words), self.hparams.dim
        frequency = counts.double() * (1 if keep is None else keep.double())
        begin = {"input": (torch.rand(V, D) - 0.5) / D**0.5, "output": torch.zeros(V, D)}
        if self.hparams.objective != "negative_sampling":
            begin["bias"] = (frequency / frequency.sum()).log().float()[:, None]
        tables = {name: nn.Embedding.from_pretrained(table, freeze=False) for name, table in begin.items()}
        self._register_vocabulary(contrastive.encode_words(words), counts.long(), tables)

    def _register_vocabulary(self, spelling: Tensor, counts: Tensor, tables: dict[str, nn.Embedding]) -> None:
        self.register_buffer("spelling", spelling)
        self.register_buffer("counts", counts.clone())
        for name, table in tables.items():
            setattr(self, name, table)
        self.words = contrastive.decode_words(spelling)
        self.index = {word: i for i, word in enumerate(self.words)}
        noise = NoiseDistribution.of(self.counts.cpu().double() ** self.hparams.alpha)
        for name, values in noise._asdict().items():
            self.register_buffer(f"noise_{name}", values.to(self.counts.device), persistent=False)

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """Return ``input`` (V, D), ``output`` (V, D) and ``bias`` (V, 1). A model may lack ``output`` or ``bias``."""
        return {name: m for name, m in self.named_children() if isinstance(m, nn.Embedding)}

    @property
    def predicts(self) -> bool:
        """Whether the model has output vectors. Published weights have none."""
        return "output" in self.tables

    def limit_rates(self, pairs: float, frequency: Tensor) -> None:
        """Set each word's fraction of ``lr`` from its ``frequency`` (V,) and the expected ``pairs`` per step."""
        k = 0 if self.hparams.objective == "softmax" else self.hparams.num_noise
        noise = k * self.noise_log_q.cpu().double().exp()
        for name, expected in {"input": pairs * frequency, "output": pairs * (frequency + noise)}.items():
            share = (LONGEST_STEP / (self.hparams.lr * expected)).clamp(max=1).float()
            self.register_buffer(f"share_{name}", share[:, None].to(self.device) if (share < 1).any() else None, False)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        text = data.corpus if isinstance(data, TextData) else None
        if text is None and not self.words:
            raise UserError(
                "the model has no words: use fit(model, datamodule=...) with a zoo.datamodules.Text, or call "
                "model.make_vocabulary(words, counts) first (docs/own_loop.md)"
            )
        if not self.words:
            self.make_vocabulary(text.words, torch.from_numpy(text.counts), data.keep)
        self.check_vocabulary(self.words if text is None else text.words)
        # DDP reads ``sparse`` from the modules. NCCL, the backend on GPUs, and softmax need dense gradients.
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        for table in self.tables.values():
            table.sparse = on_cpu and self.hparams.objective != "softmax"
        self.rates_known = text is not None
        if text is not None:
            kept = torch.from_numpy(text.counts).double() * data.keep.double()
            rows = data.hparams.batch_size * self.trainer.accumulate_grad_batches
            pairs = rows * ROW * (data.hparams.window + 1)  # on average (1 + window) / 2 words on each side
            self.limit_rates(pairs, kept / kept.sum())

    def on_train_batch_start(self, batch, batch_idx):
        if not self.rates_known:  # the first batch of a plain loader shows how many pairs a step has
            pairs = self.trainer.strategy.reduce(contrastive.most_pairs(Rows(*batch)), reduce_op="sum")
            self.limit_rates(float(pairs) * self.trainer.accumulate_grad_batches, self.counts.cpu() / self.counts.sum())
            self.rates_known = True

    def check_vocabulary(self, words: list[str]) -> None:
        """Raise UserError unless the model has output vectors and its vocabulary is ``words``, the words of a text."""
        if not self.predicts:
            raise UserError("these weights have no output vectors and cannot predict words: use a checkpoint of a run")
        if self.words != words:
            raise UserError(
                f"the model has a vocabulary of {len(self.words):,} words, and the text has a different one of "
                f"{len(words):,}: use the text and options of its training"
            )

    @property
    def q(self) -> NoiseDistribution:
        """The noise distribution."""
        return NoiseDistribution(self.noise_log_q, self.noise_share, self.noise_alias)

    # Scores.

    @takes(centres=A_WORD, words=A_WORD)
    def scores(self, centres: Tensor, words: Tensor, lookup: Lookup = dense) -> Tensor:
        """Return s(w, c), (B, C, M), for every pair of a centre (B, C) and a word (B, M) of the same row."""
        v, u = (at_least_float32(lookup(*t)) for t in ((self.input.weight, centres), (self.output.weight, words)))
        s = (u @ v.transpose(-1, -2)).transpose(-1, -2)  # the gradient of u, the larger one, then needs no copy
        return s + lookup(self.bias.weight, words).transpose(-1, -2) if "bias" in self.tables else s

    @takes(centres=A_WORD)
    def all_scores(self, centres: Tensor) -> Tensor:
        """Return s(w, c), (..., V), of centres (...) with all words of the vocabulary."""
        s = at_least_float32(self.input.weight[centres]) @ at_least_float32(self.output.weight).T
        return s + self.bias.weight[:, 0] if "bias" in self.tables else s

    def pair_losses(
        self, rows: Rows, noise: Tensor, objective: str, k: int, lookup: Lookup = dense
    ) -> tuple[Tensor, Tensor]:
        """Return the objective of each centre with each word around it, nats, and which of these words form pairs.

        Args:
            rows: Rows of words (datamodules/text.py).
            noise: Noise words of each row, (B, M), or of each pair, (B, 32, 2 window + 1, k).

        Returns:
            Losses (B, 32, 2 window + 1), and booleans of the same shape that are true for pairs.
        """
        centres, _, taken = contrastive.pairs_in_window(rows)
        centres, words = centres.clamp(min=0), rows.words.clamp(min=0)  # -1 marks no word
        n, own = words.shape[1], noise.ndim == 4
        every = self.scores(centres, words if own else torch.cat([words, noise], 1), lookup)
        s = contrastive.around_each(every, taken.shape[-1])
        if objective == "softmax":
            return contrastive.softmax_loss(s, self.all_scores(centres)[:, :, None]), taken
        if own:
            u = at_least_float32(lookup(self.output.weight, noise))
            v = at_least_float32(lookup(self.input.weight, centres))[:, :, None, :, None]
            s_noise = (u @ v)[..., 0]  # (..., k)
            s_noise = s_noise + lookup(self.bias.weight, noise)[..., 0] if "bias" in self.tables else s_noise
        else:
            s_noise, noise = every[:, :, None, n:], noise[:, None, None]  # (B, 32, 1, M), (B, 1, 1, M)
        log_q, log_q_noise = self.noise_log_q[words].unfold(-1, taken.shape[-1], 1), self.noise_log_q[noise]
        return contrastive.noise_loss(objective, s, s_noise, log_q, log_q_noise, k), taken

    # Training: noise() draws all random numbers, and pair_losses() is a deterministic function of them.

    def noise(self, batch, *, generator: torch.Generator | None = None, k: int | None = None) -> dict[str, Tensor]:
        """Return the ``noise`` words of rows, (B, M), or of pairs, (B, 32, 2 window + 1, k), if ``shared_noise=0``."""
        words, k = batch[0], self.hparams.num_noise if k is None else k
        own = (ROW, words.shape[1] - ROW + 1, k) if self.hparams.shared_noise == 0 else (self.hparams.shared_noise,)
        return {"noise": self.q.draw(len(words), *own, generator=generator)}

    def loss(self, batch, *, generator: torch.Generator | None = None, lookup: Lookup = dense) -> dict[str, Tensor]:
        """Return ``loss``, the mean objective over the pairs of a batch, nats, and ``pairs``, the number of pairs."""
        rows, noise = Rows(*batch), self.noise(batch, generator=generator)["noise"]
        objective, k = self.hparams.objective, self.hparams.num_noise
        if noise.ndim == 2 and objective in ("nce", "negative_sampling"):
            log_kq = self.noise_log_q + math.log(k) if objective == "nce" else None
            total, pairs = contrastive.summed_nce_loss(rows, noise, partial(self.scores, lookup=lookup), log_kq, k)
        else:
            losses, taken = self.pair_losses(rows, noise, objective, k, lookup)
            total, pairs = (losses * taken).sum(), taken.sum()
        return {"loss": total / pairs.clamp(min=1), "pairs": pairs}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch, lookup=sparse if self.input.sparse else dense)
        self.log("train/loss", terms["loss"], prog_bar=True)
        # lr is per pair, so a step needs the sum over pairs. Lightning averages over processes and accumulated batches.
        return terms["loss"] * terms["pairs"] * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def graph_key(self) -> None: ...  # all steps have the same operations

    def on_before_optimizer_step(self, optimizer):
        for name, table in self.tables.items():
            share = self.share_input if name == "input" else self.share_output
            if share is not None:  # it is None if every word has the whole rate
                contrastive.scale_rows(table.weight.grad, share)

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        total = max(1, self.trainer.estimated_stepping_batches)
        return scheduled(optimiser, lambda step: max(LEAST_RATE, 1 - step / total))

    # Evaluation.

    @torch.no_grad()
    def pair_log_likelihood(self, batch) -> tuple[Tensor, Tensor]:
        """Return log p(w | c) of each pair, (P,), and log Z_c of each centre, (n,), nats. Z_c sums over all words."""
        centres, around, taken = contrastive.pairs_in_window(Rows(*batch))
        present = centres >= 0
        s = self.all_scores(centres[present])  # (n, V)
        log_Z = s.logsumexp(-1)
        log_p = s.gather(-1, around[present].clamp(min=0)) - log_Z[:, None]
        return log_p[taken[present]], log_Z

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.loss(batch, generator=generator)
        self.log(f"{stage}/loss", terms["loss"], batch_size=int(terms["pairs"]), sync_dist=True, prog_bar=True)
        data, n = self.trainer.datamodule, self.trainer.world_size
        at_once = data.hparams.eval_batch_size if isinstance(data, TextData) else n * len(batch[0])
        batches = (self.trainer.num_test_batches if stage == "test" else self.trainer.num_val_batches)[0]
        places = batch_idx * at_once + self.global_rank + n * torch.arange(len(batch[0]))
        chosen = contrastive.spread(places, batches * at_once, EXACT_ROWS).to(self.device)
        for row in chosen.split(1):  # one row at a time limits memory to (32, V)
            self.held_out.update(*self.pair_log_likelihood([t[row] for t in batch]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def on_validation_epoch_start(self):
        self.held_out.reset()  # an interrupted evaluation may have left sums

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self, stage="val"):
        self.log_dict({f"{stage}/{k}": v for k, v in self.held_out.compute().items()}, sync_dist=True)

    def on_test_epoch_end(self):
        self.on_validation_epoch_end(stage="test")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "skipgram"

    # Use of a trained model.

    def number(self, word: str) -> int:
        """Return the index of ``word``, 0 for the most frequent. Raise UnknownWord, a KeyError, for an unknown word."""
        if not isinstance(word, str):
            raise UserError(f"a word must be a string, got {word!r}")
        if word not in self.index:
            raise UnknownWord.of(word, self.words)
        return self.index[word]

    def vector(self, word: str) -> Tensor:
        """Return the input vector of ``word``, (D,). Raise KeyError if ``word`` is not in the vocabulary."""
        return self.input.weight[self.number(word)].detach()

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """Return the ``n`` words with the nearest vectors, and their cosines. Raise KeyError for an unknown word."""
        unit = self.unit_vectors()
        return contrastive.most_similar(self.words, unit, unit[self.number(word)], [word], n)

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]:
        """Return words that are to ``c`` as ``b`` is to ``a``, with cosines: queen for a = man, b = woman, c = king.

        These are the ``n`` words with the largest cosine with b - a + c, for vectors scaled to length 1 (Mikolov et al.
        2013a). The words a, b and c are excluded. Raise KeyError for an unknown word.
        """
        unit = self.unit_vectors()
        x, y, z = (unit[self.number(word)] for word in (a, b, c))
        return contrastive.most_similar(self.words, unit, F.normalize(y - x + z, dim=0), [a, b, c], n)

    def unit_vectors(self) -> Tensor:
        """Return the input vectors, scaled to length 1, (V, D)."""
        return F.normalize(at_least_float32(self.input.weight.detach()), dim=1)

    def export(self, path: str | Path, binary: bool = False) -> None:
        """Write words and input vectors in the word2vec text or binary format (zoo.training.files.save_word2vec)."""
        save_word2vec(self.words, self.input.weight, Path(path), binary)

    def keyed_vectors(self):
        """Return words, input vectors and counts as gensim's KeyedVectors (zoo.training.files.keyed_vectors)."""
        if not self.words:
            raise UserError("the model has no vocabulary yet: train it, or load trained weights")
        return keyed_vectors(self.words, self.input.weight, self.counts)

    def published(self) -> dict[str, Tensor]:
        """Return the weights to publish: input vectors of the 20,000 most frequent words."""
        return {
            "spelling": contrastive.encode_words(self.words[:PUBLISHED_WORDS]),
            "counts": self.counts[:PUBLISHED_WORDS].clone(),
            "input.weight": self.input.weight.detach()[:PUBLISHED_WORDS].clone(),
        }

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return ``softmax``, the exact gradient of -log p(w | c), and estimators that draw noise words.

        ``nce_1``, ``nce_5`` and ``nce_25`` have k = 1, 5 and 25. If Z_c = 1, NCE approaches the exact gradient as k
        grows. With more noise words, ``importance_sampling`` approaches it for any Z_c. ``negative_sampling`` does not.
        """
        params = dict(self.named_parameters())

        def estimator(name: str, objective: str, k: int) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                losses, taken = self.pair_losses(contrastive.rows_of(batch), noise["noise"], objective, k)
                return (losses * taken).sum() / taken.sum()

            return GradientEstimator.of(self, name, params, partial(self.noise, k=k), loss)

        k = self.hparams.num_noise
        kinds = {"softmax": ("softmax", k)} | {f"nce_{n}": ("nce", n) for n in (1, 5, 25)}
        kinds |= {name: (name, k) for name in ("negative_sampling", "importance_sampling")}
        return {name: estimator(name, *kind) for name, kind in kinds.items()}


def _take_vocabulary(model: SkipGram, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Give ``model`` the vocabulary of ``state_dict`` before Lightning loads the weights.

    Raises:
        UserError: If the model already has a different vocabulary.
    """
    if model.words and not torch.equal(state_dict.get(f"{prefix}spelling", model.spelling), model.spelling):
        theirs = len(contrastive.decode_words(state_dict[f"{prefix}spelling"]))
        raise UserError(
            f"the weights have a vocabulary of {theirs:,} words, and the text has a different one of "
            f"{len(model.words):,}: use the text and options of their training"
        )
    if not model.words and f"{prefix}spelling" in state_dict:
        weights = {name: state_dict.get(f"{prefix}{name}.weight") for name in ("input", "output", "bias")}
        tables = {name: nn.Embedding(*weight.shape) for name, weight in weights.items() if weight is not None}
        model._register_vocabulary(state_dict[f"{prefix}spelling"].clone(), state_dict[f"{prefix}counts"], tables)
