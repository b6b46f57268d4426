"""A model with all that it needs to turn a user's image files into embeddings."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from datamodules.files import statistics
from datamodules.images import ImageForm, normalised, read_images
from zoo import pretrained


class Embedder:
    """A model with all that it needs to turn image files into embeddings.

    Args:
        model: maps normalised images [B, C, H, W] float32 to embeddings [B, d].
        form: the form in which it reads images.
        mean, std: of each channel, in [0, 1].
        space: what identifies the embedding space; None for a model that is comparable with itself only.
        digest: what identifies the model's weights.
        device: where it runs; ``auto`` takes an accelerator where there is one.
        batch_size: images at once.
    """

    def __init__(
        self,
        model: nn.Module,
        form: ImageForm,
        mean: Sequence[float],
        std: Sequence[float],
        space: Mapping[str, int | str] | None,
        digest: str,
        device: str = "cpu",
        batch_size: int = 256,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if device == "auto":
            device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        try:
            self.device = torch.device(device)
            self.model = model.eval().to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {error}") from error
        self.batch_size = batch_size
        self.form = form
        self.mean, self.std = statistics(mean, std, form.channels)
        self.space, self.digest = None if space is None else dict(space), digest

    @classmethod
    def from_checkpoint(cls, name: str, device: str = "auto", trust: Collection[str] = ()) -> "Embedder":
        """The model of anything that :func:`zoo.pretrained.load` takes.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if it does not hold what is needed to rebuild the model, or does not say how to read images.
        """
        file = pretrained.locate(name)
        try:
            model, content = pretrained.restore(str(file), trust)
            form = dict(content.extras.get("image_form") or {})
        except Exception as error:  # whatever the model's own code raises
            raise ValueError(f"{file}: the model cannot be rebuilt from it: {type(error).__name__}: {error}") from error
        if not form:
            raise ValueError(
                f"{file} does not say how to read images (no image_form): train with a data module that states its "
                "image form, or construct an Embedder"
            )
        try:
            mean, std = form.pop("mean"), form.pop("std")
            image_form = ImageForm(**form)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: image_form {content.extras['image_form']} is not valid: {error}") from error
        space = getattr(model, "embedding_space", None)
        return cls(model, image_form, mean, std, space, state_digest(content.state), device)

    @property
    def image_form(self) -> dict[str, Any]:
        """How images are read, as plain data."""
        return {**asdict(self.form), "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, paths: Sequence[str]) -> Tensor:
        """Embeddings [N, d] float32 of image files, rows of unit length, on the CPU.

        Raises ``ValueError`` or ``FileNotFoundError`` that names the file, also for an embedding without a direction.
        """
        if not paths:
            raise ValueError("no image files given")
        rows = []
        starts = range(0, len(paths), self.batch_size)
        for start in track(starts, "embedding images", transient=True, disable=len(starts) < 4):
            chunk = paths[start : start + self.batch_size]
            image = normalised(read_images(chunk, self.form).to(self.device), self.mean, self.std)
            with torch.inference_mode():
                embedding = self.model(image)
            if not isinstance(embedding, Tensor) or embedding.ndim != 2 or len(embedding) != len(chunk):
                found = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
                raise ValueError(f"the model must map images to embeddings [{len(chunk)}, d], it gave {found}")
            embedding = embedding.float().cpu()
            length = torch.linalg.vector_norm(embedding, dim=1, dtype=torch.float64)
            if bad := [path for path, x in zip(chunk, length.tolist(), strict=True) if not 0 < x < float("inf")]:
                raise ValueError(
                    f"the embeddings of {len(bad)} images are zero or not finite, such as that of {bad[0]}; "
                    "has the training diverged?"
                )
            rows.append(embedding / length[:, None].float())
        return torch.cat(rows)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of a state dict's tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
