"""Scores of the agreement between clusters and labels."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.checks.errors import UserError


def clustering_scores(table: Tensor) -> dict[str, float]:
    """Return scores of the agreement between clusters and labels, each at most 1.

    Args:
        table: number of examples of each label in each cluster, (clusters, labels), integers.

    Returns:
        ``accuracy`` is the fraction of examples whose cluster is matched to their label. The matching of clusters and
        labels is one to one, and maximises this fraction (Yang et al. 2010). ``nmi`` is the mutual information of
        clusters and labels, divided by the mean of their entropies. ``ari`` is the adjusted Rand index. For random
        clusters, ``ari`` is 0 on average.

    Raises:
        UserError: if the table has no examples.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = table.cpu().numpy()
    if counts.sum() < 1:
        raise UserError("there are no examples to score clusters on")
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    # scikit-learn needs the cluster and the label of each example. Examples in any order give equal scores.
    cluster, label = np.indices(counts.shape).reshape(2, -1).repeat(counts.ravel(), axis=1)
    return {
        "accuracy": float(matched / counts.sum()),
        "nmi": float(normalized_mutual_info_score(label, cluster)),
        "ari": float(adjusted_rand_score(label, cluster)),
    }


class ClusterTable(Metric):
    """Metric that computes :func:`clustering_scores` over batches and processes.

    Its state is the number of examples of each label in each cluster.

    Args:
        num_clusters: K.
        num_labels: L, the largest number of different labels.
    """

    full_state_update = False
    table: Tensor

    def __init__(self, num_clusters: int, num_labels: int = 1000):
        super().__init__()
        # The counts are a metric state and not a buffer. A state_dict does not hold metric states.
        self.add_state("table", torch.zeros(num_clusters, num_labels, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, cluster: Tensor, label: Tensor) -> None:
        """Count a batch of clusters in 0 .. K-1 and labels in 0 .. L-1, (B,) each.

        Raises:
            UserError: if the labels are not integers in 0 .. L-1.
        """
        most = self.table.shape[1] - 1
        plain = not (label.is_floating_point() or label.is_complex()) and label.shape == cluster.shape
        if not plain or ((label < 0) | (label > most)).any():
            raise UserError(
                f"labels of clusters must be integers from 0 to {most}, (B,); got {label.dtype}, {tuple(label.shape)}, "
                "or other values: leave such labels out of validation batches"
            )
        pairs = cluster * self.table.shape[1] + label
        # The sum is a new tensor. In-place writes would fail later for a table that was made in inference mode.
        self.table = self.table + pairs.bincount(minlength=self.table.numel()).view_as(self.table)

    def compute(self) -> dict[str, float]:
        """Return the scores of all examples since the last ``reset``. All processes return equal scores.

        Raises:
            UserError: if there were no examples.
        """
        return clustering_scores(self.table)
