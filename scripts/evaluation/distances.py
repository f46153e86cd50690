"""How far two sets of points, (N, D) and (M, D), are apart."""

from __future__ import annotations

import numpy as np


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians of their means and covariances (Dowson and Landau 1982; as in FID, Heusel et al. 2017):
    |μa − μb|² + tr(Ca + Cb − 2 (Ca Cb)^½)."""
    difference = a.mean(0) - b.mean(0)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _root(ca)
    return float(difference @ difference + np.trace(ca + cb) - 2 * np.trace(_root(root @ cb @ root)))


def _root(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 256) -> float:
    """The mean over directions of the distance that the points' shadows have to be moved (Bonneel et al. 2015); both
    have as many points."""
    chance = np.random.default_rng(0)
    lines = chance.normal(size=(a.shape[1], directions))
    lines /= np.linalg.norm(lines, axis=0)
    return float(np.abs(np.sort(a @ lines, 0) - np.sort(b @ lines, 0)).mean())
