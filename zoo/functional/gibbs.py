"""Gibbs chains between two layers of binary units, each independent given the other; seed 004 sec. 7.2.

A step draws a whole layer at once, v given h and then h given v. v is (n, V) and h (n, H), one chain a row; u is
uniform in [0, 1). Persistent chains are kept as hidden states, which saves a product per step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.pixels import check_pixels
from zoo.checks.values import check_choice, check_whole
from zoo.functional.boltzmann import Machine, draw
from zoo.functional.noise import chunk_generator, rand

Init = str | Tensor | list[Tensor]  # a word or images; see beginning


def gibbs(h: Tensor, u_v: Tensor, u_h: Tensor, machine: Machine) -> Tensor:
    """v after v | h, h | v, ..., v | h: ``len(u_v)`` draws of v with one of h between each two; seed 004 sec. 7.2.

    Args:
        h: (n, H).
        u_v: uniform noise, (k, n, V).
        u_h: uniform noise, (k - 1, n, H).

    Returns:
        (n, V).
    """
    v = draw(machine.visible_logits(h), u_v[0])
    for i in range(1, len(u_v)):
        h = draw(machine.hidden_logits(v), u_h[i - 1])
        v = draw(machine.visible_logits(h), u_v[i])
    return v


@torch.no_grad()
def cd(v: Tensor, noise: dict[str, Tensor], machine: Machine) -> Tensor:
    """v' that is k Gibbs steps away from ``v``, with ``u_h`` (k, n, H) and ``u_v`` (k, n, V); (n, V)."""
    h = draw(machine.hidden_logits(v), noise["u_h"][0])
    return gibbs(h, noise["u_v"], noise["u_h"][1:], machine)


# Persistent chains.


def own_chains(h: Tensor | None, n: int, H: int, rank: int, world_size: int) -> Tensor:
    """The persistent chains of one process, rows rank, rank + world_size, ... of ``n``; (n / world_size, H), bool.

    Args:
        h: all of them, as they are in a checkpoint, or those of the process alone; None: fair coins, keyed by the seed.
    """
    if h is None:
        h = torch.rand(n, H, generator=chunk_generator(torch.initial_seed(), -4)) < 0.5
    return h[rank::world_size] if len(h) == n else h


def restart_noise(
    h: Tensor, probability: float, V: int, *, generator: torch.Generator | None, device: torch.device
) -> dict[str, Tensor]:
    """Draw which chains restart, and the noise of their new beginnings.

    Args:
        h: where the chains stand, (n, H).
        probability: that a chain restarts.
        V: visible units.

    Returns:
        ``restart`` (n,), bool; for the m chains that restart ``u_0`` (m, V) and ``u_1`` (m, H).
    """
    restart = rand(len(h), generator=generator, device=device) < probability
    m = int(restart.sum())
    u_0, u_1 = (rand(m, size, generator=generator, device=device) for size in (V, h.shape[1]))
    return {"restart": restart, "u_0": u_0, "u_1": u_1}


@torch.no_grad()
def pcd(noise: dict[str, Tensor], machine: Machine) -> Tensor:
    """v' that is k Gibbs steps further along persistent chains, which stand at ``h`` (n, H); (n, V).

    Args:
        noise: ``h``; ``u_v`` (k, n, V) and ``u_h`` (k, n, H), whose last draws where the chains stand then; and that of
            :func:`restart_noise`, if chains restart: they begin at h given v of fair coins.
    """
    h = noise["h"].to(machine.b.dtype)
    if len(noise.get("u_0", ())):
        coins = (noise["u_0"] < 0.5).to(h.dtype)
        h = h.clone()
        h[noise["restart"]] = draw(machine.hidden_logits(coins), noise["u_1"])
    return gibbs(h, noise["u_v"], noise["u_h"], machine)


# Chains that are shown.


def frame_steps(steps: int, frames: int | None) -> list[int]:
    """The steps at which a chain of ``steps`` is shown: its end alone, or ``frames`` from 0 on, ever further apart.

    Raises:
        UserError: for fewer than two frames, or more than there are steps.
    """
    if frames is None:
        return [steps]
    check_whole("frames", frames, least=2)
    if frames > steps + 1:
        raise UserError(
            f"a chain of {steps} steps has at most {steps + 1} frames, its beginning included; got {frames}"
        )
    # Whole numbers near a geometric series from 1 to steps, each above the one before.
    shown = [0]
    for i in range(frames - 1):
        place = round(steps ** (i / (frames - 2))) if frames > 2 else steps
        shown.append(max(place, shown[-1] + 1))
    return shown


def gibbs_frames(v: Tensor, shown: list[int], machine: Machine, *, generator: torch.Generator | None = None) -> Tensor:
    """p(v = 1 | h) of Gibbs chains that begin at ``v``, after each of the steps ``shown``; after step 0 ``v`` itself.

    Args:
        v: binary, (n, V).
        shown: rising, the last at least 1.
        generator: of the noise, which is drawn step by step; torch's own if None.

    Returns:
        (n, len(shown), V).
    """
    sampled = lambda logits: draw(logits, rand(*logits.shape, generator=generator, device=logits.device))  # noqa: E731
    found = [v] if shown[0] == 0 else []
    for step in range(1, shown[-1] + 1):
        logits = machine.visible_logits(sampled(machine.hidden_logits(v)))
        if step in shown:
            found.append(logits.sigmoid())
        if step < shown[-1]:
            v = sampled(logits)
    return torch.stack(found, dim=1)


# Where chains begin.


def coins(n: int, machine: Machine, *, generator: torch.Generator | None = None) -> Tensor:
    """v of fair coins, (n, V)."""
    return (rand(n, len(machine.b), generator=generator, device=machine.b.device) < 0.5).to(machine.b.dtype)


def pick(rows: Tensor, n: int, machine: Machine, *, generator: torch.Generator | None = None) -> Tensor:
    """``n`` of ``rows``, drawn with replacement, on the device of ``machine`` and of its dtype."""
    index = (rand(n, generator=generator, device=torch.device("cpu")) * len(rows)).long()
    return rows[index].to(machine.b.device, machine.b.dtype)


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
    """Binary v at which ``n`` chains begin, (n, V).

    Args:
        init: ``noise``, fair coins; ``data`` or ``chains``, those below, drawn at random; or n images in [0, 1].
        observe: images and uniform noise of their shape -> binary v.
        data: images that there are, (m, ...).
        chains: hidden states of persistent chains that there are, (m, H).

    Raises:
        UserError: for another ``init``, and for data or chains that there are not.
    """
    uniform = lambda like: rand(*like.shape, generator=generator, device=like.device)  # noqa: E731
    if isinstance(init, str):
        check_choice("init, where it is a word,", init, ("noise", "data", "chains"))
        if init == "noise":
            return coins(n, machine, generator=generator)
        if init == "chains":
            if chains is None:
                raise UserError("there are no persistent chains, which training checkpoints of pcd have")
            logits = machine.visible_logits(pick(chains, n, machine, generator=generator))
            return draw(logits, uniform(logits))
        if data is None:
            raise UserError(
                "there are no training images outside training: give images, or on the command line --images mnist"
            )
        images = pick(data, n, machine, generator=generator)
    else:
        whole = isinstance(init, Tensor) or (isinstance(init, list) and all(isinstance(x, Tensor) for x in init))
        if not whole or len(init) != n:
            raise UserError(f"init must be noise, data, chains or images, one tensor per chain, got {init!r:.80}")
        images = (torch.stack(init) if isinstance(init, list) else init).to(machine.b.device)
        check_pixels(images)
    return observe(images, uniform(images))


@torch.no_grad()
def burnt_in(machine: Machine) -> Tensor:
    """Hidden states of a hundred chains, a thousand Gibbs steps away from fair coins; (100, H), 0 or 1, always the same
    for one machine."""
    generator = chunk_generator(0, -3)
    uniform = lambda like: rand(*like.shape, generator=generator, device=like.device)  # noqa: E731
    means = gibbs_frames(coins(100, machine, generator=generator), [1000], machine, generator=generator)[:, 0]
    logits = machine.hidden_logits((uniform(means) < means).to(means.dtype))
    return draw(logits, uniform(logits))
