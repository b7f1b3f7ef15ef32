"""Gibbs sampling in a restricted Boltzmann machine; [DSL 7.2].

The units of one layer are independent given the other layer. A Gibbs step therefore draws all of h at once given
v, and all of v at once given h. v is (n, V) and h is (n, H), with one chain in each row. The noise u is uniform in
[0, 1). Persistent chains are stored as hidden states. This saves one matrix product for each update.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.pixels import check_pixels
from zoo.checks.values import check_choice, check_integer
from zoo.functional.boltzmann import Machine, below, draw
from zoo.functional.noise import chunk_generator, rand
from zoo.functional.visible import BINARY, Visible

Init = str | Tensor | list[Tensor]  # noise, data, chains, or images, as the function `beginning` takes them


def gibbs(h: Tensor, u_v: Tensor, u_h: Tensor, machine: Machine) -> Tensor:
    """Return v (n, V) at the end of a Gibbs chain from ``h``; [DSL 7.2].

    The chain draws v | h, h | v, ..., v | h. It draws v k times and h k - 1 times.

    Args:
        h: initial hidden states, (n, H).
        u_v: noise for v, (k, n, V), uniform for binary units and standard normal for Gaussian units.
        u_h: uniform noise for h, (k - 1, n, H).
        machine: the learned parameters.
    """
    v = machine.visible.draw(machine.visible_logits(h), u_v[0])
    for i in range(1, len(u_v)):
        h = draw(machine.hidden_logits(v), u_h[i - 1])
        v = machine.visible.draw(machine.visible_logits(h), u_v[i])
    return v


@torch.no_grad()
def cd(v: Tensor, noise: dict[str, Tensor], machine: Machine) -> Tensor:
    """Return v' (n, V) after k Gibbs steps from ``v``, as in contrastive divergence.

    Args:
        v: initial visible states, (n, V).
        noise: ``u_h`` (k, n, H) and ``u_v`` (k, n, V).
        machine: the learned parameters.
    """
    h = draw(machine.hidden_logits(v), noise["u_h"][0])
    return gibbs(h, noise["u_v"], noise["u_h"][1:], machine)


def step_noise(
    x: Tensor,
    learning: str,
    k: int,
    sizes: Sequence[int],
    chains: Tensor | None,
    restarts: float,
    visible: Visible,
    *,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Return the noise of a training step.

    Args:
        x: images, (B, ...).
        learning: ``cd``, ``pcd``, ``exact`` or ``exact_samples``.
        k: Gibbs steps.
        sizes: V and H, the sizes of the layers.
        chains: hidden states of persistent chains, (n, H). None means new random states.
        restarts: probability that a persistent chain restarts after the update.
        visible: the visible units.
        generator: source of the noise. None selects PyTorch's default generator.

    Returns:
        ``u`` (B, ...) is uniform and makes visible states of images. ``u_v`` (k, n, V) and ``u_h`` (k, n, H) are for
        Gibbs steps. ``pcd`` adds ``h`` (n, H) and the result of :func:`restart_noise`. ``exact_samples`` has ``u_s``
        (n,) and ``u_v`` (n, V) for :func:`zoo.functional.partition.exact_draw` in place of Gibbs steps.
    """
    (V, H), n = sizes, len(x)
    drawn: dict[str, Any] = {"generator": generator, "device": x.device}
    noise = {"u": rand(*x.shape, **drawn)}
    if learning == "exact":
        return noise
    if learning == "exact_samples":
        return noise | {"u_s": rand(n, **drawn), "u_v": visible.noise(n, V, **drawn)}
    if learning == "pcd":
        if chains is not None:
            chains = chains.to(x.device)
            noise |= restart_noise(len(chains), restarts, V, visible=visible, **drawn)
        noise["h"] = rand(n, H, **drawn) < 0.5 if chains is None else chains
        n = len(noise["h"])
    return noise | {"u_v": visible.noise(k, n, V, **drawn), "u_h": rand(k, n, H, **drawn)}


# Persistent chains.


def local_chains(h: Tensor | None, n: int, H: int, rank: int, world_size: int) -> Tensor:
    """Return the persistent chains of one process, (n / world_size, H), bool.

    Rank r holds rows r, r + world_size, r + 2 world_size, ... of all n chains.

    Args:
        h: hidden states of all chains, as in a checkpoint, or of the chains of this process. If ``h`` is None,
            the states are random and drawn with the seed of the run.
        n: number of chains over all processes.
        H: number of hidden units.
        rank: rank of this process.
        world_size: number of processes.
    """
    if h is None:
        h = torch.rand(n, H, generator=chunk_generator(torch.initial_seed(), -4)) < 0.5
    return h[rank::world_size] if len(h) == n else h


def restart_noise(
    n: int,
    probability: float,
    V: int,
    *,
    generator: torch.Generator | None,
    device: torch.device,
    visible: Visible = BINARY,
) -> dict[str, Tensor]:
    """Return a random choice of the chains that restart after an update, and random visible states.

    Args:
        n: number of chains.
        probability: probability that a chain restarts, at least 0 and below 1. Chains restart independently.
        V: number of visible units.
        generator: source of the noise. None selects PyTorch's default generator.
        device: device of the noise.
        visible: the kind of the visible units.

    Returns:
        an empty dictionary if ``probability`` is 0. Otherwise ``restart`` (n,), bool, which marks the chains that
        restart, and ``coins`` (m, V), random visible states. m is the expected number of restarts, rounded up.
    """
    if probability == 0:
        return {}
    restart = rand(n, generator=generator, device=device) < probability
    coins = visible.random(math.ceil(n * probability), V, generator=generator, device=device)
    return {"restart": restart, "coins": coins}


def next_hidden(p: Tensor, p_coins: Tensor, noise: dict[str, Tensor]) -> Tensor:
    """Return the hidden states with which persistent chains begin the next update, (n, H), 0 or 1.

    A chain that restarts draws h given a random visible state. The other chains draw h given their own v. The number m
    of random visible states is fixed, so that no shape depends on random numbers. Chain i restarts from state i modulo
    m. Every chain restarts with the same probability. Two chains that restart at once may share a visible state.

    Args:
        p: p(h = 1 | v) of the chains, (n, H).
        p_coins: p(h = 1 | v) of the random visible states, (m, H).
        noise: uniform noise ``u_h`` (k, n, H). If chains can restart, also the result of :func:`restart_noise`.
    """
    if "restart" in noise:
        others = p_coins if len(p_coins) == 1 else p_coins.repeat(-(-len(p) // len(p_coins)), 1)[: len(p)]
        p = torch.where(noise["restart"][:, None], others, p)
    return below(noise["u_h"][-1], p)


@torch.no_grad()
def pcd(noise: dict[str, Tensor], machine: Machine) -> Tensor:
    """Return v' (n, V) after k Gibbs steps of persistent chains.

    Args:
        noise: the hidden states ``h`` (n, H) of the chains, and the noise ``u_v`` (k, n, V) and ``u_h`` (k, n, H).
            This function does not use the last ``u_h``. :func:`next_hidden` draws the next hidden states of the chains
            with it.
        machine: the learned parameters.
    """
    return gibbs(noise["h"].to(machine.b.dtype), noise["u_v"], noise["u_h"], machine)


# Intermediate states of chains.


def frame_steps(steps: int, frames: int | None) -> list[int]:
    """Return the step numbers, from 0 to ``steps``, at which to show a chain of ``steps`` steps.

    None for ``frames`` selects only the last step. An integer selects ``frames`` steps from 0 to ``steps``, spaced
    almost geometrically.

    Raises:
        UserError: if ``frames`` is not an integer from 2 to ``steps`` + 1.
    """
    if frames is None:
        return [steps]
    check_integer("frames", frames, least=2)
    if frames > steps + 1:
        raise UserError(
            f"a chain of {steps} steps has at most {steps + 1} frames, including the initial state; got {frames}"
        )
    # After 0, the steps are increasing integers, close to a geometric series from 1 to ``steps``.
    shown = [0]
    for i in range(frames - 1):
        place = round(steps ** (i / (frames - 2))) if frames > 2 else steps
        shown.append(max(place, shown[-1] + 1))
    return shown


def gibbs_frames(v: Tensor, shown: list[int], machine: Machine, *, generator: torch.Generator | None = None) -> Tensor:
    """Return E[v | h] of Gibbs chains after each of the steps ``shown``, (n, len(shown), V).

    At step 0 the result is the initial state ``v``.

    Args:
        v: initial states, (n, V).
        shown: increasing step numbers, the last at least 1.
        machine: the learned parameters.
        generator: source of the noise. None selects PyTorch's default generator.
    """
    visible = machine.visible
    drawn: dict[str, Any] = {"generator": generator, "device": v.device}
    found = [v] if shown[0] == 0 else []
    for step in range(1, shown[-1] + 1):
        logits = machine.hidden_logits(v)
        eta = machine.visible_logits(draw(logits, rand(*logits.shape, **drawn)))
        if step in shown:
            found.append(visible.mean(eta))
        if step < shown[-1]:
            v = visible.draw(eta, visible.noise(*eta.shape, **drawn))
    return torch.stack(found, dim=1)


# Initial states of chains.


def coins(n: int, machine: Machine, *, generator: torch.Generator | None = None) -> Tensor:
    """Return random v (n, V). Binary units are 1 with probability 1/2."""
    return machine.visible.random(n, len(machine.b), generator=generator, device=machine.b.device).to(machine.b.dtype)


def pick(rows: Tensor, n: int, machine: Machine, *, generator: torch.Generator | None = None) -> Tensor:
    """Return ``n`` of ``rows``, drawn with replacement, in the dtype and on the device of ``machine``."""
    index = (rand(n, generator=generator, device=torch.device("cpu")) * len(rows)).long()
    return rows[index.to(rows.device)].to(machine.b.device, machine.b.dtype)


def beginning(
    init: Init,
    n: int,
    machine: Machine,
    observe: Callable[[Tensor, Tensor], Tensor],
    *,
    data: Tensor | None = None,
    chains: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return initial states v of ``n`` chains, (n, V).

    Args:
        init: ``noise`` draws random units. ``data`` draws random images of the argument ``data``. ``chains`` draws
            random hidden states of the argument ``chains``, and then v given h. A tensor or a list holds n images in
            [0, 1].
        n: number of chains.
        machine: the learned parameters.
        observe: (images, uniform noise in their shape) -> binary v.
        data: training images, (m, ...), or None.
        chains: hidden states of persistent chains, (m, H), or None.
        generator: source of the noise. None selects PyTorch's default generator.

    Raises:
        UserError: if ``init`` has a value that is not allowed, or if it needs data or chains that are None.
    """
    uniform = lambda like: rand(*like.shape, generator=generator, device=like.device)  # noqa: E731
    if isinstance(init, str):
        check_choice("init, unless it is images,", init, ("noise", "data", "chains"))
        if init == "noise":
            return coins(n, machine, generator=generator)
        if init == "chains":
            if chains is None:
                raise UserError(
                    "init=chains: there are no persistent chains; load a training checkpoint of learning=pcd"
                )
            eta = machine.visible_logits(pick(chains, n, machine, generator=generator))
            noise = machine.visible.noise(*eta.shape, generator=generator, device=eta.device)
            return machine.visible.draw(eta, noise)
        if data is None:
            raise UserError(
                "init=data: there are no training images outside training; pass images, or on the command line "
                "--images mnist"
            )
        images = pick(data, n, machine, generator=generator)
    else:
        whole = isinstance(init, Tensor) or (isinstance(init, list) and all(isinstance(x, Tensor) for x in init))
        if not whole or len(init) != n:
            raise UserError(f"init must be noise, data, chains or {n} images, one tensor per chain, got {init!r:.80}")
        images = (torch.stack(init) if isinstance(init, list) else init).to(machine.b.device)
        check_pixels(images)
    return observe(images, uniform(images))


@torch.no_grad()
def burned_in_states(machine: Machine) -> Tensor:
    """Return hidden states of 100 chains after 1000 Gibbs steps from random visible units, (100, H), 0 or 1.

    The noise has a fixed seed, so the result depends only on ``machine``.
    """
    drawn: dict[str, Any] = {"generator": chunk_generator(0, -3), "device": machine.b.device}
    start = coins(100, machine, generator=drawn["generator"])
    means = gibbs_frames(start, [1000], machine, generator=drawn["generator"])[:, 0]
    logits = machine.hidden_logits(machine.visible.around(means, machine.visible.noise(*means.shape, **drawn)))
    return draw(logits, rand(*logits.shape, **drawn))
