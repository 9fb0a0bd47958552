"""Negative mining: the contract of every miner, and the choice of each one."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from scipy import stats
from scipy.special import softmax
from torch import Tensor

from siclip.config import MiningStrategy
from siclip.errors import UserError
from siclip.losses import mine_negatives

STRATEGIES = get_args(MiningStrategy)
RANDOM = ("sampled", "uniform", "annealed")
PROGRESS = 0.4
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(seed: int, batch: int = 16, masked: float = 0.3) -> tuple[Tensor, Tensor]:
    """Random logits and a random mask with one fully masked row and one row with a single candidate."""
    similarity = 8 * torch.randn(batch, batch, generator=generator(seed))
    exclude = torch.rand(batch, batch, generator=generator(seed + 100)) < masked
    exclude[0] = True
    exclude[1] = True
    exclude[1, 5] = False
    return similarity, exclude


@every_strategy
@pytest.mark.parametrize("seed", range(20))
def test_a_miner_never_returns_an_excluded_pair(strategy: MiningStrategy, seed: int) -> None:
    similarity, exclude = problem(seed)
    index = mine_negatives(similarity, strategy, exclude=exclude, generator=generator(seed), progress=PROGRESS)
    assert index.shape == (16,)
    assert index.dtype == torch.int64
    assert index[0] == -1
    assert index[1] == 5
    for row in range(1, 16):
        allowed = [j for j in range(16) if j != row and not exclude[row, j]]
        assert int(index[row]) in (allowed or [-1])


@every_strategy
def test_a_batch_without_candidates_has_no_negatives(strategy: MiningStrategy) -> None:
    similarity, _ = problem(0)
    everything = torch.ones(16, 16, dtype=torch.bool)
    for logits, exclude in ((similarity, everything), (torch.ones(1, 1), ~everything[:1, :1])):
        index = mine_negatives(logits, strategy, exclude=exclude, generator=generator(), progress=PROGRESS)
        assert index.tolist() == [-1] * len(logits)


@every_strategy
def test_only_the_generator_determines_the_draws(strategy: MiningStrategy) -> None:
    similarity, exclude = problem(1)
    runs = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        runs.append(mine_negatives(similarity, strategy, exclude=exclude, generator=generator(7), progress=PROGRESS))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*runs)
    others = [
        mine_negatives(similarity / 8, strategy, exclude=exclude, generator=generator(s), progress=PROGRESS)
        for s in range(9)
    ]
    differs = any(not torch.equal(a, b) for a, b in pairwise(others))
    assert differs == (strategy in RANDOM)


@every_strategy
def test_mining_does_not_change_its_inputs_and_has_no_gradient(strategy: MiningStrategy) -> None:
    similarity, exclude = problem(2)
    similarity.requires_grad_()
    before = similarity.detach().clone(), exclude.clone()
    index = mine_negatives(similarity, strategy, exclude=exclude, generator=generator(), progress=PROGRESS)
    assert not index.requires_grad
    assert torch.equal(similarity, before[0])
    assert torch.equal(exclude, before[1])


@every_strategy
def test_mining_under_bf16_autocast_is_the_same(strategy: MiningStrategy) -> None:
    similarity, exclude = problem(3)
    plain = mine_negatives(similarity, strategy, exclude=exclude, generator=generator(), progress=PROGRESS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = mine_negatives(similarity, strategy, exclude=exclude, generator=generator(), progress=PROGRESS)
    assert torch.equal(plain, under)


@pytest.mark.parametrize("strategy", ["hardest", "teacher"])
def test_hardest_is_the_most_similar_allowed_one(strategy: MiningStrategy) -> None:
    similarity, exclude = problem(4)
    index = mine_negatives(similarity, strategy, exclude=exclude, generator=generator())
    for row in range(1, 16):
        allowed = [j for j in range(16) if j != row and not exclude[row, j]]
        assert int(index[row]) == max(allowed, key=lambda j: float(similarity[row, j]))


def test_semi_hard_is_the_most_similar_one_below_the_positive_or_else_the_least_similar() -> None:
    similarity, exclude = problem(5)
    similarity[2, 2], similarity[3, 3] = -1e3, 1e3
    index = mine_negatives(similarity, "semi_hard", exclude=exclude, generator=generator())
    fell_back = 0
    for row in range(1, 16):
        value = similarity[row].tolist()
        allowed = [j for j in range(16) if j != row and not exclude[row, j]]
        below = [j for j in allowed if value[j] < value[row]]
        fell_back += not below
        expected = max(below, key=value.__getitem__) if below else min(allowed, key=value.__getitem__)
        assert int(index[row]) == expected
    assert 0 < fell_back < 15
    hardest = mine_negatives(similarity, "hardest", exclude=exclude, generator=generator())
    assert index[3] == hardest[3]
    assert index[2] != hardest[2]


@pytest.mark.parametrize(
    ("strategy", "progress", "kappa"),
    [
        ("uniform", None, 0),
        ("sampled", None, 1),
        ("annealed", 0, 0),
        ("annealed", 0.25, 1 / 3),
        ("annealed", 0.5, 1),
        ("annealed", 0.9, 9),
    ],
)
def test_a_random_miner_takes_the_winner_of_an_exponential_race(
    strategy: MiningStrategy, progress: float | None, kappa: float
) -> None:
    """Candidate j arrives after an exponential time of rate p_j; the first one is a draw from p."""
    for seed in range(8):
        similarity, exclude = problem(seed)
        arrival = torch.empty(16, 16).exponential_(generator=generator(seed)).double().numpy()
        index = mine_negatives(
            similarity, strategy, exclude=exclude, generator=generator(seed), progress=progress
        ).tolist()
        for row in range(1, 16):
            allowed = [j for j in range(16) if j != row and not exclude[row, j]]
            time = arrival[row, allowed] / softmax(kappa * similarity[row, allowed].double().numpy())
            assert index[row] == allowed[time.argmin()]


@pytest.mark.parametrize(
    ("strategy", "progress", "kappa"),
    [("uniform", None, 0), ("sampled", None, 1), ("annealed", 0.4, 2 / 3), ("annealed", 0.6, 1.5)],
)
def test_random_miners_draw_from_their_distribution(
    strategy: MiningStrategy, progress: float | None, kappa: float
) -> None:
    """Many draws from the same six candidates, two of them excluded; a chi-square test of each row."""
    similarity = torch.randn(6, 6, generator=generator(11), dtype=torch.float64)
    exclude = torch.zeros(6, 6, dtype=torch.bool)
    exclude[:, 0] = True
    source = generator(12)
    draws = torch.stack(
        [
            mine_negatives(similarity, strategy, exclude=exclude, generator=source, progress=progress)
            for _ in range(4000)
        ]
    )
    for row in range(6):
        allowed = [j for j in range(1, 6) if j != row]
        logits = similarity[row, allowed].numpy()
        counts = torch.bincount(draws[:, row], minlength=6)
        assert counts[0] == 0
        assert counts[row] == 0
        test = stats.chisquare(counts[allowed].numpy(), softmax(kappa * logits) * len(draws))
        assert test.pvalue > 1e-3, (row, counts)
        wrong = softmax((kappa + 1) * logits)
        assert stats.chisquare(counts[allowed].numpy(), wrong * len(draws)).pvalue < 1e-3


def test_annealed_goes_from_uniform_over_sampled_to_hardest() -> None:
    for seed in range(20):
        similarity, exclude = problem(seed)
        for progress, strategy in ((0.0, "uniform"), (0.5, "sampled"), (1.0, "hardest")):
            annealed = mine_negatives(
                similarity, "annealed", exclude=exclude, generator=generator(seed), progress=progress
            )
            other = mine_negatives(similarity, strategy, exclude=exclude, generator=generator(seed))  # type: ignore[arg-type]
            assert torch.equal(annealed, other), strategy


def test_annealed_gets_harder_throughout_the_training() -> None:
    """The mean similarity of the drawn candidates increases with the progress."""
    similarity = torch.randn(64, 64, generator=generator(1))
    exclude = torch.eye(64, dtype=torch.bool)

    def mean(progress: float) -> float:
        source = generator(2)
        draws = [
            mine_negatives(similarity, "annealed", exclude=exclude, generator=source, progress=progress)
            for _ in range(20)
        ]
        return float(torch.stack([similarity.gather(1, d[:, None]).mean() for d in draws]).mean())

    means = [mean(step / 8) for step in range(9)]
    assert means == sorted(means)
    assert abs(means[0]) < 0.1
    assert means[-1] == pytest.approx(float(similarity.masked_fill(exclude, -9).amax(dim=1).mean()), rel=1e-6)


def test_mine_negatives_refuses_invalid_arguments() -> None:
    similarity, exclude = problem(0)
    with pytest.raises(UserError, match=r"hardness.*sampled, hardest"):
        mine_negatives(similarity, "hardness", exclude=exclude, generator=generator())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\(B, B\)"):
        mine_negatives(similarity[:4], "hardest", exclude=exclude[:4], generator=generator())
    with pytest.raises(UserError, match="annealed needs progress"):
        mine_negatives(similarity, "annealed", exclude=exclude, generator=generator())
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"progress .* between 0 and 1"):
            mine_negatives(similarity, "annealed", exclude=exclude, generator=generator(), progress=progress)
