"""What is judged: the targets that a run's models make up, the scores of attacks on them, the images they generate."""

import argparse
import functools
import hashlib
import inspect
import time
from collections.abc import Sequence
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
from dualmd import DualMD, EpsModel, NoiseSchedule, sample
from lab import checkpoint, cli
from lab.files import BadInput, keep, key_of, read_kept


@dataclass(frozen=True)
class Release:
    models: tuple[str, ...]  # the eps models that the attacker can ask
    gives: tuple[str, ...]  # what he gets to hold: attacks.HOLDS


RELEASED, SERVICE = ("images", "predictions", "weights"), ("images", "predictions")
RELEASES = {
    "undefended": Release(("all",), RELEASED),
    "A alone": Release(("A",), RELEASED),
    "B alone": Release(("B",), RELEASED),
    "DualMD pipeline": Release(("dual",), SERVICE),
    # the same service, asked by one who knows whose turn it is; images come from both all the same
    "DualMD unmixed": Release(("dual as A", "dual as B"), ("predictions",)),
    "DualMD leaked": Release(("A", "B"), RELEASED),
    "DistillMD average": Release(("distill-average",), RELEASED),
    "DistillMD cross": Release(("distill-cross",), RELEASED),
}
# what generates images: whoever has A and B would sample from them as the pipeline does
GENERATING = [name for name, release in RELEASES.items() if len(release.models) == 1]
RULES = "max", "sum"  # of a release of two models: what attacks.combine_scores makes of their scores
HELD_OUT_T = list(range(50, 1000, 100))  # the held-out loss is the mean over these
SAVE_EVERY = 60  # seconds after which generated images are kept, though there are more to come


class EvaluatedRun:
    """One run directory and what can be judged in it.

    Scores are computed only once, and kept in its scores/; generated images in generated/, what Inception makes of
    images in fid/. They are good for as long as nothing changes that they depend on, the code included.
    `reference` names the checkpoint of a reference model; by default it is the run's own, if there is one. `models`
    are by default the run's.
    """

    def __init__(
        self,
        run: Path,
        args: argparse.Namespace,
        images: Tensor | None = None,
        reference: Path | None = None,
        models: dict[str, checkpoint.Checkpoint] | None = None,
    ):
        self.run, self.args = run, args
        self.models = models or checkpoint.load_run(run)
        self.first = next(iter(self.models.values()))
        self.images = checkpoint.load_images(self.first, args.data_dir) if images is None else images
        checkpoint.require_images(self.first, self.images)
        cli.reuse_memory()
        if reference:
            self.models["reference"] = checkpoint.load(reference)
            require_reference(reference, self.models["reference"], self.first)
        self.asked: dict[str, EpsModel] = {name: one.eps_model(args.device) for name, one in self.models.items()}
        if "A" in self.asked and "B" in self.asked:
            dual = self.asked["dual"] = DualMD(self.asked["A"], self.asked["B"])
            self.asked |= {f"dual as {half}": attacks.isolate_half(dual, half, dual.stride) for half in "AB"}
        alone = "A alone", "B alone"  # there to be attacked only as long as the other half is not
        self.releases = [
            name
            for name, release in RELEASES.items()
            if all(model in self.asked for model in release.models) and not (name in alone and "dual" in self.asked)
        ]
        if not self.releases:
            raise BadInput(
                f"{run}/ holds a reference model and nothing to attack: train one (python train.py --split A)"
            )

    def indices(self, release: str) -> tuple[Tensor, Tensor]:
        """The members of a release, and as many non-members."""
        alone = release.endswith("alone")
        members = self.models[RELEASES[release].models[0]].trained_on if alone else self.first.split.members
        return members, self.first.split.nonmembers[: len(members)]

    def scores(
        self, release: str, wanted: dict[str, list[int]], calibrate: bool = False
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """For each attack wanted, scores of members (R, N) and of as many non-members, a row a timestep.

        A release of two models has these rows for each of RULES in turn. With `calibrate` they are less the
        reference model's scores. secmi_nn's are no scores yet, but the error images (R, N, 3, H, W) of all
        models in turn, the reference's last.
        """
        members, nonmembers = self.indices(release)
        names = [*RELEASES[release].models, *(["reference"] if calibrate else [])]
        found = [self._scores(name, torch.cat([members, nonmembers]), wanted) for name in names]
        result = {}
        for attack in wanted:
            each = [one[attack] for one in found]
            if attack == "secmi_nn":
                rows = torch.cat(each)
            else:
                if calibrate:
                    *each, reference = each
                    each = [attacks.calibrated(one, reference, logarithms=attack == "gradient") for one in each]
                rows = each[0] if len(each) == 1 else torch.cat([attacks.combine_scores(each, rule) for rule in RULES])
            result[attack] = rows[:, : len(members)], rows[:, len(members) :]
        return result

    def held_out_loss(self, release: str) -> float:
        """The denoising loss on images that no model saw, as a mean over timesteps: what the defence costs."""
        _, nonmembers = self.scores(generates_as(release), {"loss": HELD_OUT_T})["loss"]
        return -nonmembers.mean().item()

    def generated(self, release: str, n: int) -> Tensor:
        """uint8 images (n, 3, H, W) that a release generates; all targets start from the same noise."""
        (name,) = RELEASES[release].models
        path, key = self.run / "generated" / f"{name}.npz", self._key(name, dualmd, unet, data)
        images = torch.empty((n, *self.images.shape[1:]), dtype=torch.uint8)
        kept = read_kept(path, key).get("images", images[:0])[:n]  # of a run that was cut off, or a smaller n
        images[: len(kept)] = torch.as_tensor(kept)
        # --fid judges the same images as --memorization, for which they were generated first
        generator = torch.Generator().manual_seed(cli.seed_for(self.args.seed, "memorization"))
        saved = time.monotonic()
        with tqdm(total=n, initial=len(kept), desc=f"images of {name}", unit="img", leave=False) as bar:
            for first in range(0, n, self.args.batch):
                rows = images[first : first + self.args.batch]
                if (end := first + len(rows)) <= len(kept):
                    torch.randn(rows.shape, generator=generator)  # theirs, and what follows has its own
                    continue
                schedule, device = self.first.noise_schedule(), self.args.device
                x = sample(self.asked[name], schedule, rows.shape, generator=generator, device=device)
                rows.copy_(data.to_uint8(x.cpu()))
                bar.update(end - max(first, len(kept)))
                if end == n or time.monotonic() - saved > SAVE_EVERY:
                    keep(path, key, images=images[:end].numpy())
                    saved = time.monotonic()
        return images

    def fids(self, release: str, n: int, inception: fid.InceptionV3) -> tuple[float, float]:
        """FID of n images that a release generates to its members, and to as many held-out images."""
        release = generates_as(release)
        members, held_out = self._real(release, inception)
        generated = self._gaussian(RELEASES[release].models[0], self.generated(release, n), inception)
        return fid.distance(*generated, *members), fid.distance(*generated, *held_out)

    def fid_of_real(self, inception: fid.InceptionV3) -> float:
        """FID of the held-out images to the members: what a perfect model would have with as many images."""
        members, held_out = self._real(self.releases[0], inception)
        return fid.distance(*held_out, *members)

    def _real(self, release: str, inception: fid.InceptionV3) -> list[fid.Gaussian]:
        both = zip(("members", "held-out"), self.indices(release), strict=True)
        return [self._gaussian(what, self.images[indices], inception) for what, indices in both]

    def _gaussian(self, what: str, images: Tensor, inception: fid.InceptionV3) -> fid.Gaussian:
        path, key = self.run / "fid" / f"{what}.npz", key_of(images.numpy(), inception.sha256, Path(fid.__file__))
        kept = read_kept(path, key)
        if kept:
            return torch.from_numpy(kept["mean"]), torch.from_numpy(kept["root"])
        mean, root = fid.gaussian(inception, images.split(self.args.batch), len(images), what)
        keep(path, key, mean=mean.numpy(), root=root.numpy())
        return mean, root

    def _key(self, name: str, *modules: ModuleType) -> str:
        """Of what depends on one eps model, its schedule, the code in these modules, the dataset and the seed."""
        models = [self.models[half] for half in "AB"] if name.startswith("dual") else [self.models[name]]
        weights = [tensor.numpy() for model in models for tensor in model.weights.values()]
        sources = [Path(module.__file__) for module in modules]
        return key_of(*weights, *sources, f"{self.first.dataset['sha256']} {self.first.schedule} {self.args.seed}")

    def _scores(self, name: str, indices: Tensor, wanted: dict[str, list[int]]) -> dict[str, Tensor]:
        """One eps model's scores (T, N) of these images, from scores/ as far as they are there already."""
        key = key_of(self._key(name, attacks, dualmd, unet), indices.numpy())
        kept = {attack: self.run / "scores" / f"{name.replace(' ', '-')}-{attack}.npz" for attack in wanted}
        found = {attack: read_scores(path, key, len(indices)) for attack, path in kept.items()}
        missing = {attack: [t for t in ts if t not in found[attack]] for attack, ts in wanted.items()}
        missing = {attack: ts for attack, ts in missing.items() if ts}
        if missing:
            x0 = self.images[indices]
            new = attack_scores(self.asked[name], self.first.noise_schedule(), x0, missing, self.args, name)
            for attack in missing:
                found[attack] |= new[attack]
                ts = sorted(found[attack])
                scores = [found[attack][t] for t in ts]
                keep(kept[attack], key, t=ts, scores=scores, image=indices.numpy())
        return {attack: torch.from_numpy(np.stack([found[attack][t] for t in ts])) for attack, ts in wanted.items()}


def generates_as(release: str) -> str:
    return "DualMD pipeline" if release.startswith("DualMD") else release


def require_reference(path: Path, reference: checkpoint.Checkpoint, attacked: checkpoint.Checkpoint) -> None:
    """Raise BadInput unless the model in `path` can be a reference: of the same images, but none that is scored."""
    for what in ("name", "size", "sha256"):
        if reference.dataset[what] != attacked.dataset[what]:
            raise BadInput(
                f"--reference {path}: its dataset has {what} {reference.dataset[what]}, that of the models under "
                f"attack {attacked.dataset[what]}"
            )
    scored = torch.cat([attacked.split.members, attacked.split.nonmembers])
    if torch.isin(reference.trained_on, scored).any():
        raise BadInput(
            f"--reference {path}: was trained on images that will be scored; train one on others "
            "(python train.py --split reference)"
        )


def require_comparable(trainings: Sequence[EvaluatedRun]) -> None:
    """Raise BadInput where a mean over these trainings would say nothing."""
    for training in trainings:
        for what in ("name", "size"):
            one, other = trainings[0].first.dataset[what], training.first.dataset[what]
            if one != other:
                raise BadInput(
                    f"--run: {trainings[0].run} has {what} {one}, {training.run} {other}: evaluate each alone"
                )
        one, other = len(trainings[0].first.split.members), len(training.first.split.members)
        if one != other:
            raise BadInput(f"--run: {trainings[0].run} has {one} members, {training.run} {other}: evaluate each alone")


def read_scores(path: Path, key: str, n: int) -> dict[int, np.ndarray]:
    """The scores of n images in a file, by timestep; none where it does not exist, or was made from anything else."""
    kept = read_kept(path, key)
    if not kept.keys() >= {"t", "scores"} or kept["scores"].shape[:2] != (kept["t"].size, n):
        return {}
    return dict(zip(kept["t"].tolist(), kept["scores"], strict=True))


def attack_scores(
    eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, wanted: dict[str, list[int]], args, name: str
) -> dict[str, dict[int, np.ndarray]]:
    """{attack: {t: scores (N,)}} of the uint8 images x0 (N, 3, H, W). Every model is attacked with the same noise."""
    calls = {}
    for attack, ts in wanted.items():
        for t in ts:
            function = attacks.round_trip if attack == "secmi_nn" else getattr(attacks, attack)
            calls[attack, t] = functools.partial(function, t=t)
            if "generator" in inspect.signature(function).parameters:
                generator = torch.Generator().manual_seed(cli.seed_for(args.seed, "attack", attack, t))
                calls[attack, t].keywords["generator"] = generator
    parts = {call: [] for call in calls}
    batches = x0.split(args.batch)
    with tqdm(total=len(batches) * len(calls), desc=f"attacks on {name}", leave=False) as bar:
        for batch in batches:
            x = data.to_float(batch.to(args.device))
            remembers = memoize(eps_model)
            for (attack, t), attacker in calls.items():
                # these two ask nothing that another asks
                ask = eps_model if attack in ("rediffuse", "gradient") else remembers
                try:
                    parts[attack, t].append(attacker(ask, schedule, x).cpu())
                except ValueError as error:
                    raise BadInput(f"{attack} at t = {t}: {error}") from error
                bar.update()
    found = {call: torch.cat(part) for call, part in parts.items()}
    for (attack, t), scores in found.items():
        if not scores.isfinite().all():
            raise BadInput(f"{attack} on {name} at t = {t}: a score is no finite number; its weights cannot be right")
    # error images, not numbers: half precision is enough to learn from, and half as large
    found |= {call: images.half() for call, images in found.items() if call[0] == "secmi_nn"}
    return {attack: {t: found[attack, t].numpy() for t in ts} for attack, ts in wanted.items()}


def memoize(eps_model: EpsModel) -> EpsModel:
    """The same model, which answers what it was asked before from memory.

    Attacks share many of their questions: SecMI at t = 300 walks through all that it does at smaller t.
    """
    answers = {}

    def ask(x: Tensor, t: Tensor) -> Tensor:
        question = hashlib.sha256(x.cpu().numpy()).digest(), *t.tolist()
        if question not in answers:
            answers[question] = eps_model(x, t)
        return answers[question]

    return ask
