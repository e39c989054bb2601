"""What features are worth: each measure is a pure function of features and labels.

labelled  the check at their door
features  extract embeddings, every example exactly once
embed     the same from a model on disk
knn       weighted nearest neighbours
probe     a linear classifier on standardised features
drift     how adapting moved the features: compactness, rank, likeness to before
"""
