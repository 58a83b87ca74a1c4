"""Attack every model of a run, and print how well each attack tells members from non-members.

    python evaluate.py --attack pia

An AUC of 0.5 is a coin toss, 1 a certain attacker. Members are the images of A and B together.
"""

import functools

import torch
from tqdm import tqdm

import attacks
import checkpoint
import cli
import data
from dualmd import DualMD, EpsModel, NoiseSchedule
from files import BadInput
from metrics import ROC, roc

# the timesteps at which SecMI's and PIA's authors attack CIFAR-10; the loss, where PIA does
PUBLISHED_T = {"loss": 200, "secmi": 100, "pia": 200, "pian": 200}


def main() -> None:
    parser = cli.parser(__doc__.partition("\n")[0], "python evaluate.py --attack pia --dataset toy")
    parser.add_argument("--attack", choices=PUBLISHED_T, nargs="+", default=list(PUBLISHED_T), help="default: all")
    parser.add_argument("--t", type=int, help="timestep to attack at (default: the published one of each attack)")
    parser.add_argument("--batch", type=cli.natural, default=256, help="images at a time (default: %(default)s)")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the attacker's noise (default: %(default)s)")
    args = parser.parse_args()
    run, device = cli.run_directory(args), args.device

    models = checkpoint.load_run(run)
    first = next(iter(models.values()))
    dataset, schedule = first.dataset, first.noise_schedule()
    images = checkpoint.load_images(first, args.data_dir)

    print(
        f"{run}: {dataset['name']} at {dataset['size']}x{dataset['size']}, "
        f"{len(first.split.members):,} members, {len(first.split.nonmembers):,} non-members"
    )
    print(f"{'model':<18} {'attack':<6} {'t':>4} {'AUC':>7} {'ASR':>7} {'TPR@1%FPR':>10} {'TPR@0.1%FPR':>12}")
    for label, eps_model, members in targets(models, device):
        nonmembers = first.split.nonmembers[: len(members)]
        x0 = images[torch.cat([members, nonmembers])]
        for attack in args.attack:
            t = PUBLISHED_T[attack] if args.t is None else args.t
            try:
                scores = score(attack, eps_model, schedule, x0, t, args.batch, args.seed, device)
                curve = roc(scores[: len(members)], scores[len(members) :])
            except ValueError as error:
                raise BadInput(f"{attack} on {label}: {error}") from error
            print(row(label, attack, t, curve, len(nonmembers)), flush=True)


def targets(models: dict[str, checkpoint.Checkpoint], device: torch.device) -> list[tuple[str, EpsModel, torch.Tensor]]:
    """What can be attacked in a run: a label, an eps model, and the indices of its members."""
    networks = {name: model.eps_model(device) for name, model in models.items()}
    found = []
    if "all" in models:
        found.append(("undefended", networks["all"], models["all"].trained_on))
    if "A" in models and "B" in models:
        found.append(("DualMD", DualMD(networks["A"], networks["B"]), models["A"].split.members))
    else:
        found += [(f"{half} alone", networks[half], models[half].trained_on) for half in "AB" if half in models]
    for name in ("distill-average", "distill-cross"):
        if name in models:
            found.append((f"DistillMD {name.removeprefix('distill-')}", networks[name], models[name].trained_on))
    return found


def score(
    attack: str, eps_model: EpsModel, schedule: NoiseSchedule, x0: torch.Tensor, t: int, batch: int, seed: int, device
) -> torch.Tensor:
    """One attack's scores (N,) of the uint8 images x0 (N, 3, H, W), on the CPU; the same noise for every model."""
    attacker = getattr(attacks, attack)
    if attack == "loss":
        generator = torch.Generator().manual_seed(cli.seed_for(seed, "attack", attack))
        attacker = functools.partial(attacker, generator=generator)
    parts = tqdm(x0.split(batch), desc=attack, unit="batch", leave=False)
    return torch.cat([attacker(eps_model, schedule, data.to_float(part.to(device)), t).cpu() for part in parts])


def row(label: str, attack: str, t: int, curve: ROC, nonmembers: int) -> str:
    # an FPR of less than one non-member cannot be measured
    at_1 = f"{curve.tpr_at_1:.3f}" if nonmembers >= 100 else "–"
    at_01 = f"{curve.tpr_at_01:.3f}" if nonmembers >= 1000 else "–"
    return f"{label:<18} {attack:<6} {t:>4} {curve.auc:>7.3f} {curve.asr:>7.3f} {at_1:>10} {at_01:>12}"


if __name__ == "__main__":
    cli.run(main)
