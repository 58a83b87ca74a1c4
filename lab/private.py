"""Train a model on all members by DP-SGD (Abadi et al. 2016, arXiv 1607.00133): no single image changes it much.

    python -m lab.private --like runs/toy/all.pt --epsilon 10 --run runs/private

It has the images, network and steps of --like; delta is 1 / (10 images). Needed: `pip install -r lab/requirements.txt`.
"""

import copy
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import data
from dualmd import training_loss
from lab import checkpoint, cli, training
from lab.files import BadInput
from unet import UNet

CLIP, RATE = 1.0, 1e-3  # the largest length of an image's gradient; Adam's rate


def parse_args(words: list[str] | None = None) -> Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--like", type=Path, required=True, help="file of the undefended model")
    parser.add_argument("--epsilon", type=float, default=10.0, help="privacy budget (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="a new training, even if this model is trained already")
    parser.set_defaults(run=Path("runs/private"), save_every=45, snapshots=1, export=None)
    args = parser.parse_args(words)
    noise_multiplier(args.epsilon, 0.5, 1, 0.1)  # a wrong budget, or no accountant, is refused now
    return args


def main() -> None:
    args = parse_args()
    wanted = checkpoint.load(args.like)
    wanted.settings["epsilon"] = args.epsilon
    with training.claimed(wanted, args) as images:
        if images is not None:
            train(wanted, data.to_float(images[wanted.trained_on]).to(args.device), args)


def train(wanted: checkpoint.Checkpoint, x_all: Tensor, args: Namespace) -> None:
    """Train on the images x_all (N, 3, H, W) in [-1, 1], and save the model in --run (algorithm 1 of the paper)."""
    its, schedule, n = wanted.settings, wanted.noise_schedule(), len(x_all)
    rate = min(1, its["batch"] / n)
    sigma = noise_multiplier(its["epsilon"], rate, its["steps"], 1 / (10 * n))
    torch.manual_seed(cli.seed_for(its["seed"], "private", "init"))
    model = UNet(wanted.unet).to(args.device)
    ema, optimizer = copy.deepcopy(model).requires_grad_(False), torch.optim.Adam(model.parameters(), lr=RATE)
    with training.resumable(wanted, args, model, ema, optimizer) as progress:
        for step in progress.steps():
            torch.manual_seed(cli.seed_for(its["seed"], "private", step))
            x0 = x_all[torch.rand(n, device=x_all.device) < rate]  # by a coin for each: the proof needs it
            t, eps = torch.randint(schedule.T, (len(x0),), device=x0.device), torch.randn_like(x0)
            gradients = clipped_sum(model, schedule.add_noise(x0, t, eps), t, eps)
            for name, weight in model.named_parameters():
                weight.grad = (gradients[name] + sigma * CLIP * torch.randn_like(weight)) / its["batch"]
            optimizer.step()
            for average, weight in zip(ema.parameters(), model.parameters(), strict=True):
                average.lerp_(weight.detach(), 1 - min(its["ema"], (1 + step) / (10 + step)))
            progress.note(torch.zeros(()), weight.grad.norm(), t)


def clipped_sum(model: nn.Module, x_t: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """The sum of the images' gradients by the weights' names, each gradient shortened to a length of CLIP at most."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights: dict, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return training_loss(lambda x, t: functional_call(model, weights, (x, t)), x_t[None], t[None], eps[None])

    if len(x_t) == 0:
        return {name: torch.zeros_like(weight) for name, weight in weights.items()}
    of = vmap(grad(loss), (None, 0, 0, 0), randomness="different", chunk_size=64)(weights, x_t, t, eps)
    length = torch.stack([each.flatten(1).norm(dim=1) for each in of.values()]).norm(dim=0)
    return {name: torch.einsum("n,n...->...", (CLIP / length).clamp(max=1), each) for name, each in of.items()}


def noise_multiplier(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The noise, in units of CLIP, with which so many steps are (epsilon, delta)-private if each draws this share."""
    if not 0.1 <= epsilon <= 1e4:
        raise BadInput(f"--epsilon {epsilon}: must be from 0.1 to 10,000")
    try:
        import dp_accounting as dp
    except ImportError as error:
        raise BadInput("DP-SGD needs an accountant: pip install -r lab/requirements.txt") from error
    of = lambda sigma: dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))  # noqa: E731
    accountant = lambda: dp.rdp.RdpAccountant([*range(2, 65), 128, 256])  # noqa: E731
    return dp.calibrate_dp_mechanism(accountant, lambda x: dp.SelfComposedDpEvent(of(x), steps), epsilon, delta)


if __name__ == "__main__":
    cli.run(main)
