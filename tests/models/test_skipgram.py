"""Tests of skip-gram against exact sums over vocabularies of a few words."""

import copy
import math
import os
import random

import lightning as L
import pytest
import torch
from processes import together
from torch.testing import assert_close

from zoo.datamodules import Text
from zoo.estimators import gradient_moments
from zoo.functional.contrastive import ROW, NoiseDistribution, Rows, pairs_in_window
from zoo.functional.noise import chunk_generator
from zoo.skipgram import OBJECTIVES, SkipGram, dense, sparse
from zoo.training.trainer import quiet_lightning

V, WINDOW = 7, 2
WORDS = ["the", "cat", "sat", "on", "a", "mat", "today"]


@pytest.fixture
def rows(generator):
    """Return three rows, in which some words are missing. The window of each word reaches 0 to 2 words."""
    words = torch.randint(V, (3, WINDOW + ROW + WINDOW), generator=generator)
    words[torch.rand(words.shape, generator=generator) < 0.1] = -1
    reach = torch.randint(1, WINDOW + 1, (3, ROW), generator=generator)
    reach[words[:, WINDOW:-WINDOW] < 0] = 0
    return Rows(words, reach)


def made(objective="nce", generator=None, **kwargs):
    """Return a model of seven words with random parameters."""
    torch.manual_seed(0)
    model = SkipGram(objective, dim=4, **kwargs)
    model.make_vocabulary(WORDS, torch.tensor([90, 50, 40, 30, 20, 10, 5]), torch.ones(V))
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return model.double()


def by_loops(model, rows, noise, objective, k):
    """Return the loss of each pair, computed in loops from the definition of the objective."""
    input, output = model.input.weight, model.output.weight
    b = model.bias.weight[:, 0] if hasattr(model, "bias") else torch.zeros(V, dtype=torch.float64)
    q = model.counts.double() ** model.hparams.alpha
    q = q / q.sum()
    s = lambda w, c: output[w] @ input[c] + b[w]  # noqa: E731
    found = []
    for r in range(len(rows.words)):
        for i in range(ROW):
            c = int(rows.words[r, WINDOW + i])
            for offset in range(-WINDOW, WINDOW + 1):
                w = int(rows.words[r, WINDOW + i + offset])
                if c < 0 or w < 0 or offset == 0 or abs(offset) > int(rows.reach[r, i]):
                    continue
                drawn = noise[r] if noise.ndim == 2 else noise[r, i, offset + WINDOW]
                if objective == "softmax":
                    loss = -s(w, c) + torch.stack([s(v, c) for v in range(V)]).logsumexp(0)
                elif objective == "importance_sampling":
                    loss = -s(w, c) + torch.stack([s(n, c).exp() / q[n] for n in drawn]).mean().log()
                else:
                    shift = lambda n: (k * q[n]).log() if objective == "nce" else 0.0  # noqa: E731
                    loss = -torch.sigmoid(s(w, c) - shift(w)).log()
                    for n in drawn:
                        loss = loss - k / len(drawn) * torch.sigmoid(shift(n) - s(n, c)).log()
                found.append(loss)
    return torch.stack(found)


@pytest.mark.equation("skipgram", "p(w | c)")
@pytest.mark.equation("skipgram", "nce")
@pytest.mark.equation("skipgram", "negative_sampling")
@pytest.mark.equation("skipgram", "importance_sampling")
@pytest.mark.equation("skipgram", "softmax")
@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_pair_by_loops(objective, shared, rows, generator):
    model = made(objective, num_noise=3, shared_noise=shared)
    noise = model.noise(list(rows), generator=generator)["noise"]
    assert noise.shape == ((3, 6) if shared else (3, ROW, 2 * WINDOW + 1, 3))
    losses, taken = model.pair_losses(rows, noise, objective, 3)
    assert_close(losses[taken], by_loops(model, rows, noise, objective, 3), rtol=1e-5, atol=1e-5)
    generator.manual_seed(5)
    terms = model.loss(list(rows), generator=generator)
    noise = model.noise(list(rows), generator=generator.manual_seed(5))["noise"]
    assert_close(terms["loss"], by_loops(model, rows, noise, objective, 3).mean(), rtol=1e-5, atol=1e-5)
    assert int(terms["pairs"]) == int(taken.sum())


@pytest.mark.parametrize("shared", [0, 6])
def test_sparse_gradients_are_the_dense_ones(shared, rows):
    model = made(shared_noise=shared)
    gradients = []
    for lookup in (dense, sparse):
        model.zero_grad(set_to_none=True)
        model.loss(list(rows), generator=torch.Generator().manual_seed(0), lookup=lookup)["loss"].backward()
        gradients.append([p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()])
    assert all(p.grad.is_sparse for p in model.parameters())
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b)


@pytest.mark.equation("skipgram", "nce")
@pytest.mark.equation("skipgram", "negative_sampling")
@pytest.mark.parametrize("objective", ["nce", "negative_sampling"])
def test_the_sum_over_all_scores_of_a_row_is_that_over_its_pairs(objective, rows, generator):
    """The loss and its gradient equal those of a sum over all pairs, also with scores of 40 times the usual size."""
    model = made(objective, num_noise=3, shared_noise=6)
    for scale in (1.0, 40.0):
        with torch.no_grad():
            model.output.weight.mul_(scale)
        terms = model.loss(list(rows), generator=generator.manual_seed(5))
        noise = model.noise(list(rows), generator=generator.manual_seed(5))["noise"]
        losses, taken = model.pair_losses(rows, noise, objective, 3)
        parameters = list(model.parameters())
        assert_close(terms["loss"], losses[taken].mean(), rtol=1e-9, atol=0)
        for found, expected in zip(
            torch.autograd.grad(terms["loss"], parameters),
            torch.autograd.grad(losses[taken].mean(), parameters),
            strict=True,
        ):
            assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert int(terms["pairs"]) == int(taken.sum())


@pytest.mark.equation("skipgram", "p(w | c)")
def test_the_likelihood_is_summed_over_the_vocabulary(rows):
    model = made("negative_sampling")
    log_p, log_Z = model.pair_log_likelihood(list(rows))
    assert_close(log_p, -by_loops(model, rows, torch.zeros(3, 1, dtype=torch.long), "softmax", 1))
    centres = pairs_in_window(rows)[0]
    s = model.input(centres[centres >= 0]) @ model.output.weight.T
    assert_close(log_Z, s.exp().sum(-1).log())
    assert not hasattr(model, "bias")


def test_validation_sums_over_rows_spread_over_the_text(monkeypatch):
    """The exact metrics use every n-th row of the text. Some batches contain no such row. The loss uses all rows."""
    monkeypatch.setattr("zoo.skipgram.EXACT_ROWS", 7)
    data = Text("pydocs", eval_batch_size=4)
    torch.manual_seed(0)
    model = SkipGram(dim=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(accelerator="cpu", **quiet).validate(model, data, verbose=False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    (metrics,) = L.Trainer(accelerator="cpu", **quiet).validate(model, data, verbose=False)
    assert L.Trainer(accelerator="cpu", **quiet).validate(model, data, verbose=False) == [metrics]  # the same noise
    batches = [model.loss(batch, generator=chunk_generator(0, i)) for i, batch in enumerate(data.val_dataloader())]
    pairs = [int(terms["pairs"]) for terms in batches]
    mean = sum(n * float(terms["loss"].detach()) for n, terms in zip(pairs, batches, strict=True)) / sum(pairs)
    assert_close(metrics["val/loss"], mean, rtol=1e-5, atol=0)
    rows = data.val_dataloader().rows()
    n = len(rows.reach)
    chosen = [i for i in range(n) if i % (-(-n // 4) * 4 // 7) == 0]
    assert 7 <= len(chosen) <= 8
    log_p, log_Z = model.pair_log_likelihood([t[chosen].long() for t in rows])
    expected = [float(-log_p.mean()), float((-log_p.mean()).exp()), float(log_Z.mean()), float(log_Z.std(correction=0))]
    found = [metrics[f"val/{name}"] for name in ("nll", "perplexity", "log_Z", "log_Z_sd")]
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    model.held_out.update(log_p, log_Z + 1)  # as if an interrupted evaluation had left these sums
    assert L.Trainer(accelerator="cpu", **quiet).validate(model, data, verbose=False) == [metrics]


def held_out(data):
    """Return the validation metrics with ``EXACT_ROWS`` = 7. The model is the same on every process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("zoo.skipgram.EXACT_ROWS", 7)
        return what_is_said(data)


def what_is_said(data):
    quiet_lightning()
    model = SkipGram(dim=4)
    model.make_vocabulary(data.corpus.words, torch.from_numpy(data.corpus.counts), data.keep)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", 1)), **quiet)
    (metrics,) = trainer.validate(model, data, verbose=False)
    return [metrics[f"val/{name}"] for name in ("nll", "perplexity", "log_Z", "log_Z_sd")]


def test_two_processes_choose_the_rows_that_one_does():
    """The rows are numbered in the order of the text. Validation chooses about seven rows."""
    data = Text("pydocs", eval_batch_size=4, min_count=20)
    data.setup()  # once, before the processes are forked
    expected = held_out(data)
    for found in together(2, held_out, data):
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_metrics_are_not_part_of_the_weights(rows):
    model = made()
    assert list(model.state_dict()) == ["spelling", "counts", "input.weight", "output.weight", "bias.weight"]
    assert [name for name, _ in model.named_parameters()] == ["input.weight", "output.weight", "bias.weight"]
    assert list(model.tables) == ["input", "output", "bias"] and model.predicts
    model.held_out.update(*model.pair_log_likelihood(list(rows)))
    copied = copy.deepcopy(model).held_out
    assert copied.compute() == model.held_out.compute()
    assert not SkipGram().predicts


def test_a_generator_may_be_given_by_position_as_in_an_earlier_version(rows):
    model, batch = made(shared_noise=6), list(rows)
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    with pytest.warns(DeprecationWarning, match="give generator=, k= of SkipGram.noise by name"):
        noise = model.noise(batch, seeded(), 2)
    assert_close(noise, model.noise(batch, generator=seeded(), k=2))
    with pytest.warns(DeprecationWarning, match="give generator=, lookup= of SkipGram.loss by name"):
        terms = model.loss(batch, seeded(), dense)
    assert_close(terms, model.loss(batch, generator=seeded()))


@pytest.mark.equation("skipgram", "nce")
@pytest.mark.equation("skipgram", "softmax")
@pytest.mark.parametrize("dense_gradients", [False, True])
@pytest.mark.parametrize("objective", ["nce", "softmax"])
def test_a_step_is_each_pairs_gradient_at_the_rates_of_its_words(objective, dense_gradients, tmp_path, monkeypatch):
    """Lightning takes two steps, with two batches each. The test computes the same steps by sums over pairs.

    Frequent words have lower learning rates.
    """
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    path, k = tmp_path / "text.txt", 3
    path.write_text(
        " ".join(random.Random(0).choices(WORDS, weights=[60, 30, 10, 5, 3, 2, 1], k=4000)), encoding="utf-8"
    )
    data = Text("textfile", str(path), window=WINDOW, sample=0.05, batch_size=2, min_count=1)
    model = SkipGram(objective, dim=4, num_noise=k, shared_noise=6, lr=0.02)
    start, seen = {}, []

    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            for p in pl_module.parameters():
                torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(len(start)))
                start[len(start)] = p.detach().clone()
            for table in pl_module.tables.values() if dense_gradients else ():
                table.sparse = False

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            noise = pl_module.noise(batch, generator=torch.Generator().manual_seed(batch_idx))
            pl_module.noise = lambda batch, *, generator: noise
            seen.append((Rows(*batch), noise["noise"]))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            del pl_module.noise

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=2, accelerator="cpu", limit_val_batches=0, accumulate_grad_batches=2, callbacks=[Watch()],
              enable_model_summary=False, **quiet).fit(model, datamodule=data)  # fmt: skip
    # A word with n expected pairs per step has a learning rate of at most 1 / n.
    kept = torch.tensor(data.corpus.counts) * data.keep.double()
    frequency, q = kept / kept.sum(), model.q.log_q.double().exp()
    pairs = 2 * 2 * ROW * (WINDOW + 1)
    into = (1 / (pairs * frequency)).clamp(max=0.02)
    out = (1 / (pairs * (frequency + (k * q if objective == "nce" else 0)))).clamp(max=0.02)
    assert (into < 0.02).any() and (into == 0.02).any() and (out < 0.02).any() and (out == 0.02).any()
    by_hand = SkipGram(objective, dim=4, num_noise=k, shared_noise=6)
    by_hand.make_vocabulary(model.words, model.counts, data.keep)
    by_hand.double()
    with torch.no_grad():
        for p, value in zip(by_hand.parameters(), start.values(), strict=True):
            p.copy_(value)
    for step in range(2):
        total = sum(by_loops(by_hand, rows, noise, objective, k).sum() for rows, noise in seen[2 * step : 2 * step + 2])
        gradients = torch.autograd.grad(total, list(by_hand.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(by_hand.named_parameters(), gradients, strict=True):
                p -= (into if name.startswith("input") else out)[:, None] * (1 - step / 2) * gradient
    for p, expected, begin in zip(model.parameters(), by_hand.parameters(), start.values(), strict=True):
        assert (expected - begin).abs().max() > 0.01
        assert_close(p.double(), expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_vocabulary_of_three_words_does_not_diverge(objective, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    path = tmp_path / "chain.txt"
    path.write_text(markov_text(5_000, torch.Generator().manual_seed(0)), encoding="utf-8")
    L.seed_everything(0, verbose=False)
    data = Text("textfile", str(path), window=1, sample=0, batch_size=8)
    model = SkipGram(objective, dim=3, lr=0.05)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_epochs=8, accelerator="cpu", enable_model_summary=False, **quiet).fit(model, datamodule=data)
    assert all(p.abs().max() < 10 for p in model.parameters())


def test_other_weights_are_refused_in_one_line():
    model = made()
    other = SkipGram(dim=4)
    other.make_vocabulary(["one", "two"], torch.tensor([2, 1]), torch.ones(2))
    with pytest.raises(ValueError, match="have a vocabulary of 2 words, and the text has a different one of 7: use"):
        model.load_state_dict(other.state_dict())


def test_it_begins_normalised():
    """In a new model, the score of a word is its bias: its log frequency after subsampling. Therefore Z_c = 1."""
    torch.manual_seed(0)
    model = SkipGram(dim=4)
    counts, keep = torch.tensor([6, 3, 1]), torch.tensor([0.5, 1.0, 1.0])
    model.make_vocabulary(["a", "b", "c"], counts, keep)
    assert_close(model.bias.weight[:, 0].exp(), torch.tensor([3 / 7, 3 / 7, 1 / 7]))
    s = model.all_scores(torch.arange(3))
    assert_close(s.logsumexp(-1), torch.zeros(3), atol=1e-6, rtol=0)
    assert 1 / 8 < model.input.weight.abs().max() <= 1 / 4 and (model.output.weight == 0).all()
    q = counts**0.75
    assert_close(model.q.log_q, (q / q.sum()).log())


def world():
    """Return a Markov chain P of three words, its stationary distribution and p(w | c) of adjacent words.

    p(w | c) is the mean of P, for the next word, and of the reversed chain, for the previous word.
    """
    P = torch.tensor([[0.1, 0.8, 0.1], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1]], dtype=torch.float64)
    pi = torch.linalg.matrix_power(P, 1000)[0]
    back = (pi[:, None] * P).T / pi[:, None]
    return P, pi, (P + back) / 2


def markov_text(n, generator):
    P = world()[0]
    state, words = 0, []
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    for x, cumulative in zip(u.tolist(), [P.cumsum(1).tolist()] * n, strict=True):
        state = min(2, sum(x > bound for bound in cumulative[state]))
        words.append("abc"[state])
    return " ".join(words)


@pytest.mark.slow
def test_nce_finds_the_distribution_and_its_normaliser(tmp_path, monkeypatch):
    """NCE learns a known p(w | c) within 0.02 from 60,000 words, with log Z_c near 0."""
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    path = tmp_path / "chain.txt"
    path.write_text(markov_text(60_000, torch.Generator().manual_seed(0)), encoding="utf-8")
    L.seed_everything(0, verbose=False)
    data = Text("textfile", str(path), window=1, sample=0, batch_size=8, eval_batch_size=8)
    model = SkipGram(dim=3, num_noise=10, lr=0.05)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=8, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=data)
    order = [model.number(w) for w in "abc"]
    s = model.all_scores(torch.tensor(order))[:, order].detach().double()
    p, pi = world()[2], world()[1]
    assert_close(s.softmax(-1), p, rtol=0, atol=0.02)
    assert s.logsumexp(-1).abs().max() < 0.03
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    entropy = -float((pi[:, None] * p * p.log()).sum())
    assert abs(metrics["val/nll"] - entropy) < 0.05  # validation has 2,000 words
    assert_close(metrics["val/perplexity"], math.exp(metrics["val/nll"]), rtol=1e-5, atol=0)
    assert abs(metrics["val/log_Z"]) < 0.03 and metrics["val/log_Z_sd"] < 0.03


def test_the_bias_of_each_estimator_is_what_theory_says(rows):
    """For normalised scores, the NCE gradient approaches the gradient of the likelihood as k grows.

    With 25 words, the bias of importance sampling is also small. Negative sampling has another expected gradient. The
    squared bias is the squared error of the mean of 400 draws, minus the variance of this mean.
    """
    model = made(num_noise=25, shared_noise=25)
    with torch.no_grad():  # with zero vectors, the bias alone normalises the scores
        model.output.weight.zero_()
        model.bias.weight.copy_(model.bias.weight.log_softmax(0))
    estimators = model.gradient_estimators()
    assert list(estimators) == ["softmax", "nce_1", "nce_5", "nce_25", "negative_sampling", "importance_sampling"]
    exact, _ = gradient_moments(estimators["softmax"], list(rows), [0])
    bias = {}
    for name, estimator in estimators.items():
        moments, _ = gradient_moments(estimator, list(rows), range(400))
        off = sum(float((moments.mean[k] - exact.mean[k]).square().sum()) for k in exact.mean)
        variance = moments.statistics()["all"]["variance"] / moments.n
        bias[name] = max(0.0, off - variance) ** 0.5
    norm = sum(float(g.square().sum()) for g in exact.mean.values()) ** 0.5
    assert bias["softmax"] < 1e-6
    assert bias["nce_1"] > 2 * bias["nce_5"] > 0 and bias["nce_5"] > bias["nce_25"]
    assert bias["nce_25"] < 0.25 * norm and bias["importance_sampling"] < 0.25 * norm < bias["negative_sampling"]


def test_words_are_found_by_their_vectors():
    model = made()
    with torch.no_grad():
        model.input.weight.copy_(torch.tensor([[9, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0.1, 0], [1, 0, 1, 0],
                                        [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.float64))  # fmt: skip
    assert torch.equal(model.vector("sat"), torch.tensor([0, 1, 0, 0], dtype=torch.float64))
    names, cosines = zip(*model.nearest("cat", 2), strict=True)
    assert names == ("the", "a")
    assert_close(torch.tensor(cosines), torch.tensor([9 / 82**0.5, 2**-0.5]))
    # "cat" is to "a" as "sat" is to "mat". The three given words are excluded from the answers.
    assert model.analogy("cat", "a", "sat")[0][0] == "mat"
    assert len(model.nearest("cat", 100)) == 6 and len(model.analogy("cat", "a", "sat", 100)) == 4
    with pytest.raises(KeyError, match="'tody' is not among the 7 words of the vocabulary; close to it: today"):
        model.nearest("tody")
    with pytest.raises(KeyError, match="'xyzzy' is not among the 7 words of the vocabulary\"?$"):
        model.analogy("xyzzy", "the", "cat")


def test_weights_bring_their_vocabulary(tmp_path):
    model = made()
    again = SkipGram(**model.hparams).double()
    again.load_state_dict(model.state_dict())
    assert again.words == WORDS and torch.equal(again.input.weight, model.input.weight)
    assert all(torch.equal(a, b) for a, b in zip(again.q, model.q, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"objective": "hinge"},
            "objective must be nce, negative_sampling, importance_sampling or softmax, got 'hinge'",
        ),
        ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
        ({"num_noise": 0}, "num_noise must be an integer of at least 1"),
        ({"alpha": -1}, "alpha must be a number of at least 0"),
        ({"alpha": 1.5}, "alpha must be at most 1, got 1.5"),
        ({"shared_noise": -1}, "shared_noise must be an integer of at least 0"),
        ({"lr": 0}, "lr must be a positive number"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SkipGram(**arguments)


def test_the_noise_is_of_the_counts_to_the_power_alpha():
    for alpha in (0.0, 0.75, 1.0):
        model = made(alpha=alpha)
        q = model.counts.double() ** alpha
        assert_close(model.q.log_q.double(), (q / q.sum()).log(), rtol=1e-6, atol=1e-6)
    assert isinstance(model.q, NoiseDistribution)
