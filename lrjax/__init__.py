"""Low-rank matrix recovery and sensing in JAX: state a problem, pick a solver, sweep many cases under one jit."""

import importlib.metadata

from lrjax import datasets as datasets
from lrjax import diagnostics as diagnostics
from lrjax import initial as initial
from lrjax import losses as losses
from lrjax import metrics as metrics
from lrjax import operators as operators
from lrjax import plot as plot
from lrjax import private as private
from lrjax import sketching as sketching
from lrjax import status as status
from lrjax import step_sizes as step_sizes
from lrjax import synthetic as synthetic
from lrjax import testing as testing
from lrjax.completion.complete import Completion as Completion
from lrjax.completion.complete import complete as complete
from lrjax.completion.ensemble import CompletionEnsemble as CompletionEnsemble
from lrjax.completion.ensemble import complete_ensemble as complete_ensemble
from lrjax.completion.rank_selection import RankSelection as RankSelection
from lrjax.completion.rank_selection import select_rank as select_rank
from lrjax.core.pytree import pytree as pytree
from lrjax.iteration.solution import Solution as Solution
from lrjax.iteration.solve import iterate as iterate
from lrjax.iteration.solve import solve as solve
from lrjax.models.calibration import Calibration as Calibration
from lrjax.models.calibration import calibrate as calibrate
from lrjax.models.rank_projected import RankProjectedResult as RankProjectedResult
from lrjax.models.rank_projected import rank_projected_descent as rank_projected_descent
from lrjax.models.sparse_bayesian import SparseBayesianResult as SparseBayesianResult
from lrjax.models.sparse_bayesian import sparse_bayesian as sparse_bayesian
from lrjax.models.state_space import StateSpace as StateSpace
from lrjax.models.state_space import ho_kalman as ho_kalman
from lrjax.models.state_space import markov_parameters as markov_parameters
from lrjax.models.supervised_dictionary import SupervisedDictionary as SupervisedDictionary
from lrjax.models.supervised_dictionary import supervised_dictionary as supervised_dictionary
from lrjax.problems.factors import Factors as Factors
from lrjax.problems.problem import Problem as Problem
from lrjax.sketching import LstsqResult as LstsqResult
from lrjax.sketching import low_rank as low_rank
from lrjax.sketching import lstsq as lstsq
from lrjax.sketching import rsvd as rsvd
from lrjax.solvers import IRLS as IRLS
from lrjax.solvers import AlternatingMinimization as AlternatingMinimization
from lrjax.solvers import AlternatingProjections as AlternatingProjections
from lrjax.solvers import Averaged as Averaged
from lrjax.solvers import BestSoFar as BestSoFar
from lrjax.solvers import BlindGainDescent as BlindGainDescent
from lrjax.solvers import GaussNewton as GaussNewton
from lrjax.solvers import GradientDescent as GradientDescent
from lrjax.solvers import Restarted as Restarted
from lrjax.solvers import ScaledGradientDescent as ScaledGradientDescent
from lrjax.solvers import ScaledSubgradient as ScaledSubgradient
from lrjax.solvers import SingularValueProjection as SingularValueProjection
from lrjax.solvers import SoftImpute as SoftImpute
from lrjax.solvers import SubgradientMethod as SubgradientMethod
from lrjax.sweeps.sweep import load_sweep as load_sweep
from lrjax.sweeps.sweep import sweep as sweep

try:
    __version__ = importlib.metadata.version("lrjax")
except importlib.metadata.PackageNotFoundError:  # a source tree on the path
    __version__ = "unknown"
