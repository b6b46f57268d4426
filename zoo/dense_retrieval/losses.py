"""The contrastive loss over the passages of all ranks."""

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

from zoo.distributed import gather as gather_rows


def contrastive_loss(
    query: Tensor, passage: Tensor, temperature: float = 0.01, gather: bool = True, row: Tensor | None = None
) -> Tensor:
    """``-mean over i of log softmax_j(<q_i, p_j> / temperature)`` at j = i G, in float32 (LLM-QL, arXiv 2504.05216).

    With ``gather``, j runs over the passages of all ranks and i over the rank's own queries; the mean over ranks that
    data-parallel training takes makes both loss and gradient those of one process with the joined batch.

    Args:
        query: [B, H], as normalised as they are to be compared.
        passage: [B * G, H], those of query i from i * G on, its positive first.
        temperature: above 0; at 0.01, scores in bfloat16 would be off by up to 0.4.
        gather: take the other ranks' passages as negatives; they need the same B and G.
        row: [B * G] int64, each passage's document; further passages of a query's own positive document, which
            another query brought along, are then no negatives. -1 is no document.

    Raises:
        ValueError: for shapes that do not fit and a temperature of 0 or less.
    """
    batch, count = len(query), len(passage)
    if batch == 0 or count == 0 or count % batch or query.shape[1:] != passage.shape[1:]:
        raise ValueError(
            f"query {tuple(query.shape)} and passage {tuple(passage.shape)}: must be [B, H] and [B * G, H]"
        )
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    own = torch.arange(batch, device=query.device) * (count // batch)
    target, together = own, gather and distributed.is_available() and distributed.is_initialized()
    with torch.autocast(query.device.type, enabled=False):
        query, passage = query.float(), passage.float()
        if together:
            passage, target = gather_rows(passage), own + distributed.get_rank() * count
        score = query @ passage.T / temperature
        if row is not None:
            positive = row[own, None]
            same = (positive == (gather_rows(row) if together else row)) & (positive >= 0)
            score = score.masked_fill(same.scatter(1, target[:, None], False), -torch.inf)
        return cross_entropy(score, target)
