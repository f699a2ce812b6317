"""Low-rank matrix recovery and sensing in JAX: state a problem, pick a solver, sweep many cases under one jit."""

from lrjax import datasets as datasets
from lrjax import initial as initial
from lrjax import losses as losses
from lrjax import metrics as metrics
from lrjax import operators as operators
from lrjax import plot as plot
from lrjax import sketching as sketching
from lrjax import status as status
from lrjax import step_sizes as step_sizes
from lrjax import synthetic as synthetic
from lrjax._complete import Completion as Completion
from lrjax._complete import complete as complete
from lrjax._solve import Solution as Solution
from lrjax._solve import iterate as iterate
from lrjax._solve import solve as solve
from lrjax.factors import Factors as Factors
from lrjax.problem import Problem as Problem
from lrjax.sketching import LstsqResult as LstsqResult
from lrjax.sketching import lstsq as lstsq
from lrjax.solvers import AlternatingMinimization as AlternatingMinimization
from lrjax.solvers import Averaged as Averaged
from lrjax.solvers import BestSoFar as BestSoFar
from lrjax.solvers import GradientDescent as GradientDescent
from lrjax.solvers import Restarted as Restarted
from lrjax.solvers import ScaledGradientDescent as ScaledGradientDescent
from lrjax.solvers import SubgradientMethod as SubgradientMethod
