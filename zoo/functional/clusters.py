"""How well clusters agree with labels."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.checks.errors import UserError


def clustering_scores(table: Tensor) -> dict[str, float]:
    """How clusters agree with labels that were not used to find them.

    Args:
        table: how many examples of each label lie in each cluster, (clusters, labels), whole numbers.

    Returns:
        ``accuracy``: the share of examples in the cluster of their label, for the one-to-one assignment of clusters to
        labels that makes it largest (Yang et al. 2010); ``nmi``: the mutual information over the mean of the two
        entropies; ``ari``: the Rand index, adjusted to 0 for chance. All at most 1.

    Raises:
        UserError: for a table without examples.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = table.cpu().numpy()
    if counts.sum() < 1:
        raise UserError("there are no examples to score clusters on")
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    # The scores depend on the table alone: any list of pairs with these counts will do.
    cluster, label = np.indices(counts.shape).reshape(2, -1).repeat(counts.ravel(), axis=1)
    return {
        "accuracy": float(matched / counts.sum()),
        "nmi": float(normalized_mutual_info_score(label, cluster)),
        "ari": float(adjusted_rand_score(label, cluster)),
    }


class ClusterTable(Metric):
    """:func:`clustering_scores` over batches and processes: of how many examples of each label lie in each cluster.

    Args:
        num_clusters: K.
        num_labels: L; 10 in every image data set here.
    """

    full_state_update = False
    table: Tensor

    def __init__(self, num_clusters: int, num_labels: int = 10):
        super().__init__()
        # No buffer: a state_dict has no key for it, and averaged weights come and go without it.
        self.add_state("table", torch.zeros(num_clusters, num_labels, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, cluster: Tensor, label: Tensor) -> None:
        """Count a batch: clusters 0 .. K-1 and labels 0 .. L-1, (B,) each."""
        pairs = cluster * self.table.shape[1] + label
        # Out of place: a table that was reset in inference mode could not be written to outside it.
        self.table = self.table + pairs.bincount(minlength=self.table.numel()).view_as(self.table)

    def compute(self) -> dict[str, float]:
        """The scores of all that was counted since the last ``reset``, on every process the same.

        Raises:
            UserError: if nothing was.
        """
        return clustering_scores(self.table)
