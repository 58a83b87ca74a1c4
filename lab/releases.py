"""What is judged: the releases that a run's models make up, the scores of attacks on them, the images they generate."""

import functools
import hashlib
import inspect
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import attacks
import data
import dualmd
import fid
import unet
from dualmd import DualMD, EpsModel, NoiseSchedule
from lab import checkpoint, hardware
from lab.checkpoint import Checkpoint
from lab.cli import seed_for
from lab.files import BadInput, keep, kept_rows, key_of, read_kept


@dataclass(frozen=True)
class Release:
    """What an attacker meets."""

    models: tuple[str, ...]  # the eps models that they can query
    gives: tuple[str, ...]  # what they hold: values of attacks.HOLDS


RELEASED, SERVICE = ("images", "predictions", "weights"), ("images", "predictions")
RELEASES = {
    "undefended": Release(("all",), RELEASED),
    "A alone": Release(("A",), RELEASED),
    "B alone": Release(("B",), RELEASED),
    "DualMD pipeline": Release(("dual",), SERVICE),
    # the same service, and an attacker who knows which model answers at which timestep; images come from both models
    "DualMD unmixed": Release(("dual as A", "dual as B"), ("predictions",)),
    "DualMD leaked": Release(("A", "B"), RELEASED),
    "DistillMD": Release(("distill-cross",), RELEASED),
    "averaged targets": Release(("distill-average",), RELEASED),  # a variant of DistillMD
    "ordinary distillation": Release(("distill-single",), RELEASED),
}
# the releases that generate images; an attacker with A and B would sample from them as the pipeline does
GENERATING = [name for name, release in RELEASES.items() if len(release.models) == 1]
COMBINATIONS = "max", "sum"  # how attacks.combine_scores combines the scores of a release with two models


class EvaluatedRun:
    """One run directory, and what can be judged in it.

    Its scores/, generated/ and fid/ keep what took long, an interrupted work's too, until something changes that it
    depends on: weights, images, arguments, FORMULA in files.py. By default the models are those in the directory.
    """

    def __init__(self, path: Path, args: Namespace, images: Tensor | None = None, models: dict | None = None):
        self.path, self.args = path, args
        self.models: dict[str, Checkpoint] = models or checkpoint.load_run(path)
        if not self.models:
            raise BadInput(f"no trained model in {path}/: train one (python train.py --split A), or name another --run")
        self.first = next(iter(self.models.values()))
        if not models:
            require_own_students(path, self.models)
            its = self.first.dataset
            data.count(its["name"], args.data_dir or its["data_dir"])  # are its images there?
        if images is not None:
            self.images = images
            checkpoint.require_images(self.first, images)
        if args.reference:
            self.models["reference"] = checkpoint.load(args.reference)
            require_reference(f"--reference {args.reference}", self.models["reference"], self.first)
        self.seed, self.schedule = self.first.settings["seed"], self.first.noise_schedule()
        eps_models = {name: model.eps_model(args.device) for name, model in self.models.items()}
        hidden = set()
        if {"A", "B"} <= eps_models.keys():
            hidden = {"A alone", "B alone"}  # one half is a release only while the other one is missing
            dual = eps_models["dual"] = DualMD(eps_models["A"], eps_models["B"])
            eps_models |= {f"dual as {half}": attacks.isolate_half(dual, half, dual.stride) for half in "AB"}
        self.eps_models: dict[str, EpsModel] = eps_models
        possible = [name for name, release in RELEASES.items() if set(release.models) <= eps_models.keys()]
        self.releases = [name for name in possible if name not in hidden]
        if not self.releases:
            raise BadInput(f"{path}/ has no model to attack, only a reference: train one (python train.py --split A)")
        if min(len(self.indices(name)[0]) for name in self.releases) < 2:
            raise BadInput(f"{path}/: an attack, or a search for copies, takes two members at least; train with more")

    @functools.cached_property
    def images(self) -> Tensor:
        """The dataset, uint8 (N, 3, H, W)."""
        images = checkpoint.load_images(self.first, self.args.data_dir)
        hardware.reuse_memory()
        return images

    def distinct(self, indices: Tensor) -> dict[bytes, int]:
        """The index of each different image among these, by its pixels."""
        return {self.images[i].numpy().tobytes(): i for i in indices.flip(0).tolist()}

    def duplicates(self) -> int:
        """How many non-members are, pixel for pixel, also among the members."""
        members, others = self.indices(self.releases[0])
        its = self.distinct(members)
        return sum(image.numpy().tobytes() in its for image in self.images[others])

    def indices(self, release: str) -> tuple[Tensor, Tensor]:
        """The indices of a release's members, and of as many non-members."""
        alone = release.endswith("alone")
        members = self.models[RELEASES[release].models[0]].trained_on if alone else self.first.split.members
        return members, self.first.split.nonmembers[: len(members)]

    def scores(self, release: str, wanted: dict[str, list[int]], calibrate: bool = False) -> dict[str, list[Tensor]]:
        """The scores of members (R, N) and non-members (R, N) for each wanted attack, with a row for each timestep.

        A release with two models has these rows once for each of COMBINATIONS. `calibrate` subtracts the scores under
        the reference. An attack of attacks.FEATURES has the features (R, N, ...) of all models, the reference's last.
        """
        names, sides = [*RELEASES[release].models, *(["reference"] if calibrate else [])], self.indices(release)
        found, result = [self.scores_of(name, torch.cat(sides), wanted) for name in names], {}
        for attack in wanted:
            rows = [one[attack] for one in found]
            if calibrate and attack not in attacks.FEATURES:
                *rows, reference = rows
                rows = [attacks.calibrated(one, reference) for one in rows]
            if len(rows) > 1 and attack not in attacks.FEATURES:
                rows = [attacks.combine_scores(rows, rule) for rule in COMBINATIONS]
            result[attack] = torch.cat(rows).split([len(side) for side in sides], dim=1)
        return result

    @property
    def loss_ts(self) -> list[int]:
        """The timesteps of a held-out loss: 50, 150, ... 950 of 1000."""
        return [*range(self.schedule.T // 20, self.schedule.T, max(1, self.schedule.T // 10))]

    def held_out_loss(self, release: str) -> float:
        """The training loss on the non-members, as a mean over timesteps: what the defence costs."""
        _, nonmembers = self.scores(generates_as(release), {"loss": self.loss_ts})["loss"]
        return -nonmembers.mean().item()

    def generated(self, release: str, n: int) -> Tensor:
        """n images that a release generates, uint8 (n, 3, H, W). All releases start from the same noise."""
        (name,) = RELEASES[release].models
        key = key_of(self.identity(name), str((self.args.seed, hardware.bfloat16_is_faster(self.args.device))))
        # --fid judges the same images as --memorization
        generator = torch.Generator().manual_seed(seed_for(self.args.seed, "memorization"))
        x_T = torch.randn((n, *self.images.shape[1:]), generator=generator)
        networks = [self.eps_models[half] for half in ("AB" if name == "dual" else [name])]
        return generate(networks, self.schedule, x_T, self.args, self.path / "generated" / f"{name}.npz", key)

    def judged(self, what: str, images: Tensor, inception: fid.InceptionV3) -> tuple[fid.Gaussian, tuple[float, ...]]:
        """What `fid.judge` says of these images; `what` names them. No Inception Score is ()."""
        path, key = self.path / "fid" / f"{what}.npz", key_of(images.numpy())
        return fid.judge(inception, path, key, lambda done: images[done:].split(self.args.batch), len(images), what)

    def identity(self, name: str) -> str:
        """The `identity` of one of its eps models."""
        return identity(self.first, *(self.models[half] for half in ("AB" if name.startswith("dual") else [name])))

    def scores_of(self, name: str, indices: Tensor, wanted: dict[str, list[int]]) -> dict[str, Tensor]:
        """One eps model's scores (T, N) of these images. Those that scores/ already has are not computed again."""
        key = key_of(self.identity(name), str(self.args.seed), indices.numpy())
        calls, start = [(attack, t) for attack, ts in wanted.items() for t in ts], name.replace(" ", "-")
        paths = {call: self.path / "scores" / f"{start}-{call[0]}-{call[1]}.npz" for call in calls}
        there = ((call, read_kept(path, key)) for call, path in paths.items())
        found = {call: torch.from_numpy(kept["scores"]) for call, kept in there if kept}
        if missing := [call for call in calls if call not in found]:
            # all models get the same noise
            noise = {call: torch.Generator().manual_seed(seed_for(self.args.seed, "attack", *call)) for call in missing}
            attackers = {call: attacker_at(*call, generator) for call, generator in noise.items()}

            def batches(done: int) -> Iterator[tuple[Tensor, ...]]:
                x0 = self.images[indices[done:]]
                return attack_scores(self.eps_models[name], self.schedule, x0, attackers, self.args, name)

            unfinished = self.path / "scores" / f"{start}-unfinished.npz"
            new = kept_rows(unfinished, key_of(key, str(missing)), len(indices), batches, *noise.values())
            for call, scores in zip(missing, new, strict=True):
                keep(paths[call], key, scores=scores.numpy(), image=indices.numpy())
            found |= zip(missing, new, strict=True)
            unfinished.unlink(missing_ok=True)
        return {attack: torch.stack([found[attack, t] for t in ts]) for attack, ts in wanted.items()}


def identity(first: Checkpoint, *models: Checkpoint) -> str:
    """A key of what results depend on, but for arguments: weights; images, split and schedule of `first`."""
    split = [part.numpy() for part in vars(first.split).values()]
    return key_of(checkpoint.weights_key(*models), f"{first.dataset['sha256']} {first.schedule}", *split)


def generate(
    networks: list[unet.UNet], schedule: NoiseSchedule, x_T: Tensor, args: Namespace, path: Path, key: str, **how
) -> Tensor:
    """Denoise x_T (N, 3, H, W) with one network, or with two that alternate at each step: uint8 images on the CPU.

    `path` keeps them under `key`, also those of an interrupted attempt. `how` has other arguments of `dualmd.denoise`.
    """
    how = {"generator": torch.Generator(), "stride": 10} | how
    stride = 1 if how.get("method") == "ddpm" else how["stride"]
    steps = (schedule.T - 1) // stride + 1
    form = {"bar_format": "{l_bar}{bar}| [{elapsed}<{remaining}]", "leave": False}

    def batches(done: int) -> Iterator[tuple[Tensor]]:
        fast = [hardware.for_sampling(network, schedule.T) for network in networks]
        eps_model = DualMD(*fast, stride=stride) if len(fast) == 2 else fast[0]
        bar = tqdm(total=(len(x_T) - done) * steps, desc=f"{len(x_T) - done} images of {path.stem}", **form)
        with bar, hardware.on_all_cores(eps_model, args.device) as spread:

            def counted(x: Tensor, t: Tensor) -> Tensor:
                bar.update(len(x))
                return spread(x, t)

            for x in x_T[done:].split(args.batch):
                yield (data.to_uint8(dualmd.denoise(counted, schedule, x.to(args.device), **how).cpu()),)

    return kept_rows(path, key, len(x_T), batches, how["generator"])[0]


def generates_as(release: str) -> str:
    """The release whose images and held-out loss stand for this one: each form of DualMD generates as the pipeline."""
    return "DualMD pipeline" if release.startswith("DualMD") else release


def require_own_students(path: Path, models: dict[str, Checkpoint]) -> None:
    """Raise BadInput where a student was taught by others than the A and B beside it, such as before a --restart."""
    key = {"A", "B"} <= models.keys() and checkpoint.weights_key(models["A"], models["B"])
    students = [model for model in models.values() if model.settings["targets"] in ("cross", "average")]
    if others := [model for model in students if key and model.settings["teachers"] != key]:
        again = f"train it again (python train.py --distill {others[0].settings['targets']} --restart)"
        raise BadInput(f"{path}/{others[0].name}.pt was taught by others than its A.pt and B.pt: {again}")


def require_reference(which: str, reference: Checkpoint, attacked: Checkpoint) -> None:
    """Raise BadInput unless this model has the same dataset, and was not trained on an image that is scored."""
    if found := reference.difference(attacked, "name", "size", "sha256"):
        raise BadInput(f"{which}: it and the attacked models differ ({found})")
    if torch.isin(reference.trained_on, torch.cat([attacked.split.members, attacked.split.nonmembers])).any():
        advice = "train one on others (python train.py --split reference)"
        raise BadInput(f"{which}: it was trained on images that will be scored; {advice}")


def require_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Raise BadInput where a mean over these runs would say nothing."""
    for run in runs[1:]:
        if found := run.first.difference(runs[0].first, "name", "size", "members", "schedule"):
            raise BadInput(f"--run: {run.path} and {runs[0].path} differ ({found}): evaluate each by itself")
    keys = [run.identity(name) for run in runs for name in run.models if name != "reference"]
    if len(set(keys)) < len(keys):
        raise BadInput("--run: two of these hold the same model, which a mean would count twice")


def require_timesteps(ts: dict[str, list[int]], schedule: NoiseSchedule) -> None:
    """Raise BadInput where an attack is impossible at one of its timesteps: it is tried on a network of few weights."""
    network = unet.UNet(unet.UNetConfig(2, (1,), (), 1, dropout=0, groups=1)).requires_grad_(False)
    for attack, t in [(attack, t) for attack in ts for t in ts[attack]]:
        try:
            attacker_at(attack, t, torch.Generator())(network, schedule, torch.zeros(1, 3, 2, 2))
        except ValueError as error:
            raise BadInput(f"{attack}: {error}") from error


Attacker = Callable[[EpsModel, NoiseSchedule, Tensor], Tensor]


def attacker_at(attack: str, t: int, generator: torch.Generator) -> Attacker:
    """An attack at a timestep, or what it learns from. Its noise, if it draws any, comes from `generator`."""
    function = attacks.FEATURES.get(attack) or getattr(attacks, attack)
    noise = {"generator": generator} if "generator" in inspect.signature(function).parameters else {}
    return functools.partial(function, t=t, **noise)


def attack_scores(
    eps_model: EpsModel,
    schedule: NoiseSchedule,
    x0: Tensor,
    attackers: dict[tuple, Attacker],
    args: Namespace,
    name: str,
) -> Iterator[tuple[Tensor, ...]]:
    """The scores (N,) of uint8 images x0 (N, 3, H, W) by each attacker, given by (attack, t): batch after batch."""
    batches = x0.split(args.batch)
    bar = tqdm(total=len(batches) * len(attackers), desc=f"attacks on {name}", leave=False)
    with bar, hardware.on_all_cores(eps_model, args.device) as spread:
        for batch in batches:
            x, memoized, parts = data.to_float(batch.to(args.device)), memoize(spread), []
            # gsa needs the network itself, and rediffuse shares no query with another attack
            asked = {"gsa": eps_model, "rediffuse": spread}
            for (attack, t), attacker in attackers.items():
                scores = attacker(asked.get(attack, memoized), schedule, x).cpu()
                if not scores.isfinite().all():
                    problem = "a score is not finite, so the weights cannot be right"
                    raise BadInput(f"{attack} on {name} at t = {t}: {problem}")
                # error images: half precision is enough to learn from, and half as large
                parts.append(scores.half() if attack == "secmi_nn" else scores)
                bar.update()
            yield tuple(parts)


def memoize(eps_model: EpsModel) -> EpsModel:
    """The same model with a memory for repeated queries: SecMI at t = 300 makes all those of smaller t."""
    answers = {}

    def answer(x: Tensor, t: Tensor) -> Tensor:
        query = hashlib.sha256(x.cpu().numpy()).digest(), *t.tolist()
        if query not in answers:
            answers[query] = eps_model(x, t)
        return answers[query]

    return answer
