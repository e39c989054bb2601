"""Evaluation of features: each measure is a pure function of features and labels.

labelled  the check of features and labels before they are measured
features  extract embeddings, every example exactly once
embed     embeddings by a model that is loaded from disk
knn       weighted nearest neighbours
probe     a linear classifier on standardised features
drift     change of features by adaptation: compactness, rank, similarity to initial ones
sparsity  share of zeros, and features that are reduced to whether they are 0
intervals confidence intervals of a paired difference, and McNemar's test
verdict   whether one arm helped, compared with another
transfer  figures of a matrix of accuracies, tasks by domains
fill      tokens that a masked language model predicts for the masks of a text
"""
