"""Tests of a trained net as in the paper (section 3.4): protocols -> score files -> errors of nets and ensembles."""
