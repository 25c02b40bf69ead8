"""Circuit analyses of a trained network: subspaces, QK and OV circuits, order parameters, patching and ablation.

The modules cite, by author and year:

* Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, Transformer Circuits Thread;
* Olsson et al. 2022, In-context Learning and Induction Heads, Transformer Circuits Thread;
* Vig et al. 2020, Investigating Gender Bias in Language Models Using Causal Mediation Analysis, NeurIPS;
* Meng et al. 2022, Locating and Editing Factual Associations in GPT, NeurIPS;
* Wang et al. 2023, Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small, ICLR;
* Goldowsky-Dill et al. 2023, Localizing Model Behavior with Path Patching, arXiv:2304.05969;
* Nanda 2023, Attribution Patching: Activation Patching At Industrial Scale, neelnanda.io.
"""
