"""From features of mixtures to their losses: regressors and honest judgement of them. Sees numbers only."""
