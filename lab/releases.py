"""What is judged: the releases that a run's models make up, the scores of attacks on them, the images they generate."""

import functools
import hashlib
import inspect
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
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
from lab.files import BadInput, keep, key_of, read_kept


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
}
# the releases that generate images; an attacker with A and B would sample from them as the pipeline does
GENERATING = [name for name, release in RELEASES.items() if len(release.models) == 1]
COMBINATIONS = "max", "sum"  # how attacks.combine_scores combines the scores of a release with two models
HELD_OUT_T = list(range(50, 1000, 100))  # the held-out loss is the mean over these timesteps
SAVE_EVERY = 60  # seconds between two saves of the images generated so far


class EvaluatedRun:
    """One run directory, and what can be judged in it.

    Its scores/, generated/ and fid/ keep scores, generated images and Inception's features, until anything changes that
    they depend on, the code included. By default the reference model and the `models` are those in the directory.
    """

    def __init__(self, path: Path, args: Namespace, images: Tensor | None = None, models: dict | None = None):
        self.path, self.args = path, args
        self.models: dict[str, Checkpoint] = models or checkpoint.load_run(path)
        if not self.models:
            raise BadInput(f"no trained model in {path}/: train one (python train.py --split A), or name another --run")
        self.first = next(iter(self.models.values()))
        self.images = checkpoint.load_images(self.first, args.data_dir) if images is None else images
        checkpoint.require_images(self.first, self.images)
        hardware.reuse_memory()
        if args.reference:
            self.models["reference"] = checkpoint.load(args.reference)
            require_reference(args.reference, self.models["reference"], self.first)
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

    def indices(self, release: str) -> tuple[Tensor, Tensor]:
        """The indices of a release's members, and of as many non-members."""
        alone = release.endswith("alone")
        members = self.models[RELEASES[release].models[0]].trained_on if alone else self.first.split.members
        return members, self.first.split.nonmembers[: len(members)]

    def scores(self, release: str, wanted: dict[str, list[int]], calibrate: bool = False) -> dict[str, list[Tensor]]:
        """The scores of members (R, N) and non-members (R, N) for each wanted attack, with a row for each timestep.

        A release with two models has these rows once for each of COMBINATIONS. `calibrate` subtracts the scores under
        the reference. An attack of attacks.FEATURES has no scores yet, but the features (R, N, ...) of all models, the
        reference's last.
        """
        names, sides = [*RELEASES[release].models, *(["reference"] if calibrate else [])], self.indices(release)
        found, result = [self._scores(name, torch.cat(sides), wanted) for name in names], {}
        for attack in wanted:
            rows = [one[attack] for one in found]
            if calibrate and attack not in attacks.FEATURES:
                *rows, reference = rows
                rows = [attacks.calibrated(one, reference) for one in rows]
            if len(rows) > 1 and attack not in attacks.FEATURES:
                rows = [attacks.combine_scores(rows, rule) for rule in COMBINATIONS]
            result[attack] = torch.cat(rows).split([len(side) for side in sides], dim=1)
        return result

    def held_out_loss(self, release: str) -> float:
        """The training loss on the non-members, as a mean over timesteps: what the defence costs."""
        _, nonmembers = self.scores(generates_as(release), {"loss": HELD_OUT_T})["loss"]
        return -nonmembers.mean().item()

    def generated(self, release: str, n: int) -> Tensor:
        """n images that a release generates, uint8 (n, 3, H, W). All releases start from the same noise."""
        (name,) = RELEASES[release].models
        key = self._key(name, dualmd, unet, data, hardware) + str(hardware.bfloat16_is_faster(self.args.device))
        path = self.path / "generated" / f"{name}.npz"
        # --fid judges the same images as --memorization
        generator = torch.Generator().manual_seed(seed_for(self.args.seed, "memorization"))
        x_T = torch.randn((n, *self.images.shape[1:]), generator=generator)
        images = torch.empty(x_T.shape, dtype=torch.uint8)
        kept = read_kept(path, key).get("images", images[:0])[:n]  # of an interrupted run, or of a smaller n
        end, saved = len(kept), time.monotonic()
        images[:end] = torch.as_tensor(kept)
        networks = [self.eps_models[half] for half in ("AB" if name == "dual" else [name])]
        for batch in generate(networks, self.schedule, x_T[end:], self.args, name) if end < n else []:
            images[end : end + len(batch)] = batch
            end += len(batch)
            if end == n or time.monotonic() - saved > SAVE_EVERY:
                keep(path, key, images=images[:end].numpy())
                saved = time.monotonic()
        return images

    def judged(self, what: str, images: Tensor, inception: fid.InceptionV3) -> tuple[fid.Gaussian, tuple[float, ...]]:
        """What `fid.judge` says of these images; `what` names them. No Inception Score is ()."""
        path, key = self.path / "fid" / f"{what}.npz", key_of(images.numpy(), inception.sha256, Path(fid.__file__))
        kept = read_kept(path, key)
        if not kept:
            (mean, root), score = fid.judge(inception, images.split(self.args.batch), len(images), what)
            kept = {"mean": mean.numpy(), "root": root.numpy(), "score": np.array(score or ())}
            keep(path, key, **kept)
        return (torch.from_numpy(kept["mean"]), torch.from_numpy(kept["root"])), tuple(kept["score"].tolist())

    def _key(self, name: str, *modules: ModuleType) -> str:
        """A key for what depends on an eps model, its schedule, the code of these modules, the dataset and the seed."""
        models = [self.models[half] for half in "AB"] if name.startswith("dual") else [self.models[name]]
        rest = f"{self.first.dataset['sha256']} {self.first.schedule} {self.args.seed}"
        return key_of(checkpoint.weights_key(*models), *(Path(module.__file__) for module in modules), rest)

    def _scores(self, name: str, indices: Tensor, wanted: dict[str, list[int]]) -> dict[str, Tensor]:
        """One eps model's scores (T, N) of these images. Those that scores/ already has are not computed again."""
        key = key_of(self._key(name, attacks, dualmd, unet, data), indices.numpy())
        calls, folder, found = [(attack, t) for attack, ts in wanted.items() for t in ts], self.path / "scores", {}
        paths = {call: folder / f"{name.replace(' ', '-')}-{call[0]}-{call[1]}.npz" for call in calls}
        for call, path in paths.items():
            if kept := read_kept(path, key):
                found[call] = torch.from_numpy(kept["scores"])
        missing = [call for call in calls if call not in found]
        if missing:
            x0 = self.images[indices]
            new = attack_scores(self.eps_models[name], self.schedule, x0, missing, self.args, name)
            for call, scores in new.items():
                keep(paths[call], key, scores=scores.numpy(), image=indices.numpy())
            found |= new
        return {attack: torch.stack([found[attack, t] for t in ts]) for attack, ts in wanted.items()}


def generate(
    networks: list[unet.UNet], schedule: NoiseSchedule, x_T: Tensor, args: Namespace, name: str, stride: int = 10, **how
) -> Iterator[Tensor]:
    """Denoise x_T (N, 3, H, W) with one network, or with two as DualMD: batches of uint8 images on the CPU, in order.

    Two networks alternate at each step of the sampler. `how` has other arguments of `dualmd.denoise`.
    """
    stride = 1 if how.get("method") == "ddpm" else stride
    fast = [hardware.for_sampling(network, schedule.T) for network in networks]
    eps_model = DualMD(*fast, stride=stride) if len(fast) == 2 else fast[0]
    steps = (schedule.T - 1) // stride + 1

    def counted(x: Tensor, t: Tensor) -> Tensor:
        bar.update(len(x))
        return spread(x, t)

    form = {"bar_format": "{l_bar}{bar}| [{elapsed}<{remaining}]", "leave": False}
    bar = tqdm(total=len(x_T) * steps, desc=f"{len(x_T)} images of {name}", **form)
    with bar, hardware.on_all_cores(eps_model, args.device) as spread:
        for x in x_T.split(args.batch):
            yield data.to_uint8(dualmd.denoise(counted, schedule, x.to(args.device), stride=stride, **how).cpu())


def generates_as(release: str) -> str:
    """The release whose images and held-out loss stand for this one: each form of DualMD generates as the pipeline."""
    return "DualMD pipeline" if release.startswith("DualMD") else release


def require_reference(path: Path, reference: Checkpoint, attacked: Checkpoint) -> None:
    """Raise BadInput unless this model has the same dataset, and was not trained on an image that is scored."""
    if found := reference.difference(attacked, "name", "size", "sha256"):
        raise BadInput(f"--reference {path}: it and the attacked models differ ({found})")
    if torch.isin(reference.trained_on, torch.cat([attacked.split.members, attacked.split.nonmembers])).any():
        advice = "train one on others (python train.py --split reference)"
        raise BadInput(f"--reference {path}: it was trained on images that will be scored; {advice}")


def require_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Raise BadInput where a mean over these runs would say nothing."""
    for run in runs[1:]:
        if found := run.first.difference(runs[0].first, "name", "size", "members"):
            raise BadInput(f"--run: {run.path} and {runs[0].path} differ ({found}): evaluate each by itself")


def attacker_at(attack: str, t: int, generator: torch.Generator) -> Callable[[EpsModel, NoiseSchedule, Tensor], Tensor]:
    """An attack at a timestep, or what it learns from. Its noise, if it draws any, comes from `generator`."""
    function = attacks.FEATURES.get(attack) or getattr(attacks, attack)
    noise = {"generator": generator} if "generator" in inspect.signature(function).parameters else {}
    return functools.partial(function, t=t, **noise)


def attack_scores(
    eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, calls: list[tuple[str, int]], args: Namespace, name: str
) -> dict[tuple[str, int], Tensor]:
    """The scores (N,) of uint8 images x0 (N, 3, H, W) for each call (attack, t). All models get the same noise."""
    attackers, parts = {}, {call: [] for call in calls}
    for attack, t in calls:
        generator = torch.Generator().manual_seed(seed_for(args.seed, "attack", attack, t))
        attackers[attack, t] = attacker_at(attack, t, generator)
    batches = x0.split(args.batch)
    bar = tqdm(total=len(batches) * len(calls), desc=f"attacks on {name}", leave=False)
    with bar, hardware.on_all_cores(eps_model, args.device) as spread:
        for batch in batches:
            x, memoized = data.to_float(batch.to(args.device)), memoize(spread)
            # gsa needs the network itself, and rediffuse shares no query with another attack
            asked = {"gsa": eps_model, "rediffuse": spread}
            for (attack, t), attacker in attackers.items():
                try:
                    parts[attack, t].append(attacker(asked.get(attack, memoized), schedule, x).cpu())
                except ValueError as error:
                    raise BadInput(f"{attack}: {error}") from error
                bar.update()
    found = {call: torch.cat(part) for call, part in parts.items()}
    for (attack, t), scores in found.items():
        if not scores.isfinite().all():
            raise BadInput(f"{attack} on {name} at t = {t}: a score is not finite, so the weights cannot be right")
        if attack == "secmi_nn":  # error images: half precision is enough to learn from, and half as large
            found[attack, t] = scores.half()
    return found


def memoize(eps_model: EpsModel) -> EpsModel:
    """The same model with a memory: it answers a repeated query without computing it again.

    Attacks share many of their queries: SecMI at t = 300 makes all those that it makes at smaller t.
    """
    answers = {}

    def answer(x: Tensor, t: Tensor) -> Tensor:
        query = hashlib.sha256(x.cpu().numpy()).digest(), *t.tolist()
        if query not in answers:
            answers[query] = eps_model(x, t)
        return answers[query]

    return answer
