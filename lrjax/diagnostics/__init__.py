"""What can be known about a problem before it is solved, and what a solve or a sweep says about the theory."""

from lrjax.diagnostics.fits import RateFit as RateFit
from lrjax.diagnostics.fits import TransitionFit as TransitionFit
from lrjax.diagnostics.fits import fit_rate as fit_rate
from lrjax.diagnostics.fits import fit_transition as fit_transition
from lrjax.diagnostics.identifiability import RipEstimate as RipEstimate
from lrjax.diagnostics.identifiability import SignRipEstimate as SignRipEstimate
from lrjax.diagnostics.identifiability import coherence as coherence
from lrjax.diagnostics.identifiability import effective_rank as effective_rank
from lrjax.diagnostics.identifiability import rip as rip
from lrjax.diagnostics.identifiability import sign_rip as sign_rip
from lrjax.diagnostics.identifiability import undetermined as undetermined
from lrjax.sketching import leverage_scores as leverage_scores
