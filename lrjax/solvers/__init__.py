"""Solvers: pytrees of numbers with `init` and `step`, one file per algorithm."""

from lrjax.solvers.alternating_minimization import AlternatingMinimization as AlternatingMinimization
from lrjax.solvers.alternating_projections import AlternatingProjections as AlternatingProjections
from lrjax.solvers.blind_gain_descent import BlindGainDescent as BlindGainDescent
from lrjax.solvers.gauss_newton import GaussNewton as GaussNewton
from lrjax.solvers.gradient_descent import GradientDescent as GradientDescent
from lrjax.solvers.irls import IRLS as IRLS
from lrjax.solvers.scaled_gradient_descent import ScaledGradientDescent as ScaledGradientDescent
from lrjax.solvers.scaled_subgradient import ScaledSubgradient as ScaledSubgradient
from lrjax.solvers.singular_value_projection import SingularValueProjection as SingularValueProjection
from lrjax.solvers.soft_impute import SoftImpute as SoftImpute
from lrjax.solvers.subgradient import SubgradientMethod as SubgradientMethod
from lrjax.solvers.wrappers import Averaged as Averaged
from lrjax.solvers.wrappers import BestSoFar as BestSoFar
from lrjax.solvers.wrappers import Restarted as Restarted
