"""One prompt, three responses of one token: python -m toy.bandit trains a policy through the fused loss.

The paper's setting (arXiv 2506.07492, Sec. 5): labels from the Bradley-Terry preferences of pi* = (.6, .3, .1), the
reference pi_ref = (.4, .4, .2). The policy is a language model's head in small: hidden states h [1, D] times the
weight w [3, D]. As lambda falls, EXPO must end at the Bradley-Terry optimum of that very data, which is known here;
as it grows, at the reference.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.layout import from_packed

BEST = (0.6, 0.3, 0.1)
REFERENCE = (0.4, 0.4, 0.2)
RESPONSES = 3


def draw_pairs(count: int, seed: int) -> Tensor:
    """[count, 2] (chosen, rejected): two different responses of the reference, labelled by Bradley-Terry on BEST."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor(REFERENCE), 4 * count, replacement=True, generator=random).view(-1, 2)
    drawn = drawn[drawn[:, 0] != drawn[:, 1]][:count]
    best = torch.tensor(BEST)[drawn]
    first_wins = torch.rand(len(drawn), generator=random) < best[:, 0] / best.sum(1)
    return torch.where(first_wins[:, None], drawn, drawn.flip(1))


def bradley_terry_fit(pairs: Tensor, score: str = "log") -> Tensor:
    """The policy [3] under which the pairs [N, 2] score best, by Newton steps in float64: what lambda -> 0 must reach.

    score "log" is the likelihood, the fit of the compositional loss; "brier" the squared error of the preferences, that
    of the regression loss. Both are proper: with p* itself in place of a sample they agree.
    """
    wins = torch.zeros(RESPONSES, RESPONSES, dtype=torch.float64)
    wins.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs), dtype=torch.float64), accumulate=True)

    def loss(free: Tensor) -> Tensor:
        theta = torch.cat([free.new_zeros(1), free])
        d = theta[:, None] - theta[None, :]
        return (wins * (-torch.nn.functional.logsigmoid(d) if score == "log" else torch.sigmoid(-d).square())).sum()

    free = torch.zeros(RESPONSES - 1, dtype=torch.float64)
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(loss, free)
        free = free - torch.linalg.solve(torch.autograd.functional.hessian(loss, free), gradient)
    return torch.softmax(torch.cat([free.new_zeros(1), free]), 0)


def train(pairs: Tensor, lam: float, *, epochs: int, lr: float = 0.02, width: int = 8, seed: int = 0) -> Tensor:
    """Full-batch Adam on hidden states and head, from the reference; the anchors are an exact sample of it. -> [3]"""
    torch.manual_seed(seed)
    h, w = torch.randn(1, width), torch.randn(RESPONSES, width)
    w += (torch.tensor(REFERENCE).log()[:, None] - w @ h.T) * h / h.square().sum()  # now h w^T is the reference's log
    hidden, weight = torch.nn.Parameter(h), torch.nn.Parameter(w)
    labels = torch.cat([pairs[:, 0], pairs[:, 1], torch.arange(RESPONSES)])
    batch = from_packed(
        labels,
        torch.arange(len(labels) + 1),
        rows=torch.zeros_like(labels),  # every response follows the one prompt
        anchors=RESPONSES,
        anchor_weights=RESPONSES * torch.tensor(REFERENCE),
    )
    optimizer = torch.optim.Adam([hidden, weight], lr=lr)
    for _ in range(epochs):
        optimizer.zero_grad()
        expo_loss(hidden, weight, batch, variant="comp", lam=lam).loss.backward()
        optimizer.step()
    return torch.softmax(hidden.detach() @ weight.detach().T, -1)[0].double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300, help="labelled pairs")
    parser.add_argument("--epochs", type=int, default=600, help="full-batch Adam steps")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and of the initial policy")
    args = parser.parse_args()
    pairs = draw_pairs(args.pairs, args.seed)
    reference, optimum = torch.tensor(REFERENCE, dtype=torch.float64), bradley_terry_fit(pairs)
    print(f"{len(pairs)} pairs; Bradley-Terry optimum of these pairs {_show(optimum)}, reference {_show(reference)}")
    print("total variation; the policy starts at the reference, and a small lambda must end at the optimum")
    print(f"{'lambda':>8}  {'policy':<21}  to the optimum, before -> after   to the reference, after")
    for lam in (1e-5, 1e-2, 0.1, 1.0, 100.0):
        policy = train(pairs, lam, epochs=args.epochs, seed=args.seed)
        print(
            f"{lam:>8g}  {_show(policy)}  {_distance(reference, optimum):>22.4f} -> {_distance(policy, optimum):.4f}"
            f"{_distance(policy, reference):>26.4f}"
        )


def _distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return float((p - q).abs().sum()) / 2


def _show(p: Tensor) -> str:
    return "(" + ", ".join(f"{x:.3f}" for x in p.tolist()) + ")"


if __name__ == "__main__":
    main()
