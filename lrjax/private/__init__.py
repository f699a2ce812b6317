"""Low-rank factorization of a stream from linear sketches, with noise that makes its release differentially private.

Research accounting only: the guarantee is proved for exact real arithmetic and a perfect source of noise. Gaussian
noise in floating point from a pseudo-random generator does not have it, and no code here has been audited.

Source: Upadhyay, arXiv 1604.01429, for private factorization by three sketches; Dong, Roth and Su (2022) and Balle and
Wang (2018) for the exact accounting of Gaussian noise; Chan, Shi and Song (2011) for the binary tree.
"""

from lrjax.private.accounting import gaussian_delta, gaussian_noise
from lrjax.private.noise import noise_deviations, perturbed_low_rank
from lrjax.private.sketch import LowRankSketch
from lrjax.private.tree import TreeRelease

__all__ = [
    "LowRankSketch",
    "TreeRelease",
    "gaussian_delta",
    "gaussian_noise",
    "noise_deviations",
    "perturbed_low_rank",
]
