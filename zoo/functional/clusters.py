"""How well clusters agree with labels."""

import numpy as np
from torch import Tensor

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
