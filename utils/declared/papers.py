"""Where a declared word comes from, as docs/strategies.md and --help say it."""

from __future__ import annotations

ANCE = "ANCE (Xiong et al. 2020, arXiv 2007.00808)"
ANCE_FORK = "ANCE's fork on the rank of negatives"
DPR = "DPR (Karpukhin et al. 2020, arXiv 2004.04906)"
STAR = "STAR and ADORE (Zhan et al. 2021, arXiv 2104.08051)"
TCT_COLBERT = "TCT-ColBERT (Lin et al. 2021, arXiv 2010.11386)"
SIMANS = "after SimANS (Zhou et al. 2022, arXiv 2210.11773)"
NV_RETRIEVER = "after NV-Retriever's TopK-PercPos (Moreira et al. 2024, arXiv 2407.15831, section 4)"
MINE_HARD_NEGATIVES = "as sentence-transformers' mine_hard_negatives (range_min, range_max)"
LOG_UNIFORM = "the log-uniform (Zipf) sampler of candidate sampling, over ranks"
