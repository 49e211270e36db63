"""Every measurement, by name, in the order in which they are shown."""

from __future__ import annotations

from ..base import Measurement
from .alignment import Alignment
from .block_influence import BlockInfluence
from .branch_dependency import BranchDependency
from .conditioning import Conditioning
from .dead_channels import DeadChannels
from .gamma_outliers import GammaOutliers
from .gradient_profile import GradientProfile
from .identity_share import IdentityShare
from .magnitude import Magnitude
from .massive_activations import MassiveActivations
from .nonfinite import NonFinite
from .norm_growth import NormGrowth
from .outlier_channels import OutlierChannels
from .padding_leakage import PaddingLeakage
from .rank_collapse import RankCollapse
from .residual_ratio import ResidualRatio
from .sigma import Sigma

MEASUREMENTS: dict[str, type[Measurement]] = {
    measurement.name: measurement
    for measurement in (
        NonFinite,
        Magnitude,
        PaddingLeakage,
        ResidualRatio,
        Alignment,
        BranchDependency,
        BlockInfluence,
        NormGrowth,
        RankCollapse,
        Sigma,
        Conditioning,
        MassiveActivations,
        OutlierChannels,
        DeadChannels,
        GammaOutliers,
        IdentityShare,
        GradientProfile,
    )
}
