"""Configs of runs: frozen, strict and documented. They import no module that trains or computes."""

from mechinterp.config.interventions import ActivationIntervention as ActivationIntervention
from mechinterp.config.interventions import Clamp as Clamp
from mechinterp.config.interventions import CopyReadout as CopyReadout
from mechinterp.config.interventions import Fix as Fix
from mechinterp.config.interventions import Freeze as Freeze
from mechinterp.config.interventions import Graft as Graft
from mechinterp.config.interventions import InterventionConfig as InterventionConfig
from mechinterp.config.interventions import ScaleHeadOutput as ScaleHeadOutput
from mechinterp.config.interventions import Temperature as Temperature
from mechinterp.config.messages import explain as explain
from mechinterp.config.model import AdditiveConfig as AdditiveConfig
from mechinterp.config.model import InductionHeadConfig as InductionHeadConfig
from mechinterp.config.model import ModelConfig as ModelConfig
from mechinterp.config.model import TransformerConfig as TransformerConfig
from mechinterp.config.presets import PRESETS as PRESETS
from mechinterp.config.run import RunConfig as RunConfig
from mechinterp.config.run import canonical as canonical
from mechinterp.config.section import Family as Family
from mechinterp.config.section import Section as Section
from mechinterp.config.task import CustomTaskConfig as CustomTaskConfig
from mechinterp.config.task import InductionTokensConfig as InductionTokensConfig
from mechinterp.config.task import ItemLabelConfig as ItemLabelConfig
from mechinterp.config.task import PairedItemsConfig as PairedItemsConfig
from mechinterp.config.task import TaskConfig as TaskConfig
from mechinterp.config.training import CheckpointConfig as CheckpointConfig
from mechinterp.config.training import TrainingConfig as TrainingConfig
