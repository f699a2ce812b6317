"""Measurement operators: linear maps from low-rank matrices to numbers, one contract for all."""

from lrjax.core.pytree import pytree as pytree
from lrjax.operators.base import EntrywiseOperator as EntrywiseOperator
from lrjax.operators.base import Operator as Operator
from lrjax.operators.combinators import masked as masked
from lrjax.operators.combinators import scaled as scaled
from lrjax.operators.combinators import stacked as stacked
from lrjax.operators.combinators import summed as summed
from lrjax.operators.dense import DenseEnsemble as DenseEnsemble
from lrjax.operators.entries import EntryMask as EntryMask
from lrjax.operators.entries import Identity as Identity
from lrjax.operators.gains import GainMeasurements as GainMeasurements
from lrjax.operators.gains import InverseGainSystem as InverseGainSystem
from lrjax.operators.gains import SeededGainMeasurements as SeededGainMeasurements
from lrjax.operators.hankel import AdjointMatrix as AdjointMatrix
from lrjax.operators.hankel import Hankel as Hankel
from lrjax.operators.kronecker import Kronecker as Kronecker
from lrjax.operators.rank_one import RankOneMeasurements as RankOneMeasurements
from lrjax.operators.sampled_entries import SampledEntries as SampledEntries
from lrjax.operators.seeded import SeededGaussianEnsemble as SeededGaussianEnsemble
from lrjax.operators.structured_gains import StructuredGainMeasurements as StructuredGainMeasurements
