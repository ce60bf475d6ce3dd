"""Scaling laws: the model size and the tokens that reach the lowest loss for an amount of compute.

    N parameters, embeddings included; D tokens of training; C FLOPs of training, 6 N D in both papers

Published are, in Chinchilla (https://arxiv.org/abs/2203.15556):

    approach 1, 2   N ~ C^a with a = 0.50 and 0.49, and tables of optimal N, C and D (3 and A3)
    approach 3      L(N, D) = E + A / N^alpha + B / D^beta with E = 1.69, A = 406.4, B = 410.7, alpha = 0.34,
                    beta = 0.28

and in PaLM 2 (https://arxiv.org/abs/2305.10403, section 2): N and D grow in equal proportions, so a = 0.5; the best of
the models trained with 1e22 FLOPs has about 9.5 billion parameters. Derived are here:

    approach 1, 2   factor and exponent of N = k C^a, by least squares over the logarithms of the papers' tables
    approach 3      the closed form of the optimum (equation 4) with the constants before rounding: alpha = 0.3392,
                    beta = 0.2849, E = 1.6934, which Besiroglu et al. (https://arxiv.org/abs/2404.10102) read in the
                    paper's source. They give the paper's 40B for Gopher's 5.76e23 FLOPs (rounded ones 32B), and table
                    A3 within a fifth: the paper counts FLOPs more finely than 6 N D there.
    PaLM 2          the factor, from that one model
"""

import dataclasses
import math

import numpy as np

from t5flan.errors import UserError, did_you_mean

FLOPS_PER_PARAMETER = 6.0
"""FLOPs of training for each parameter and token, in the papers."""

CHINCHILLA_PARAMETERS = (4e8, 1e9, 1e10, 6.7e10, 1.75e11, 2.8e11, 5.2e11, 1e12, 1e13)
"""Rows of Chinchilla's tables 3 and A3."""
CHINCHILLA_FLOPS = {
    1: (1.92e19, 1.21e20, 1.23e22, 5.76e23, 3.85e24, 9.90e24, 3.43e25, 1.27e26, 1.30e28),
    2: (1.84e19, 1.20e20, 1.32e22, 6.88e23, 4.54e24, 1.18e25, 4.19e25, 1.59e26, 1.75e28),
    3: (2.21e19, 1.62e20, 2.46e22, 1.71e24, 1.26e25, 3.52e25, 1.36e26, 5.65e26, 8.55e28),
}
"""Approach -> optimal FLOPs of each row. For 175B and approach 3 the paper prints 1.26e24; its 6 N D is 1.26e25."""
PALM2_FLOPS, PALM2_PARAMETERS = 1e22, 9.5e9


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The law N = factor * C^exponent, with D = C / (6 N).

    Attributes:
        factor, exponent: of the optimal number of parameters.
        studied: the least and the most FLOPs of the runs behind it; elsewhere it extrapolates.
        source: the paper, and which of its constants are used.
    """

    factor: float
    exponent: float
    studied: tuple[float, float]
    source: str

    def parameters(self, flops: float) -> float:
        """The optimal number of parameters for `flops`."""
        return float(self.factor * flops**self.exponent)

    def flops_of_parameters(self, parameters: float) -> float:
        """The FLOPs for which `parameters` are optimal."""
        return float((parameters / self.factor) ** (1.0 / self.exponent))

    def tokens(self, parameters: float) -> float:
        """The optimal number of tokens for a model of `parameters`."""
        return self.flops_of_parameters(parameters) / (FLOPS_PER_PARAMETER * parameters)

    def flops_of_tokens(self, tokens: float) -> float:
        """The FLOPs for which `tokens` are optimal."""
        return float((FLOPS_PER_PARAMETER * self.factor * tokens) ** (1.0 / (1.0 - self.exponent)))


@dataclasses.dataclass(frozen=True)
class LossLaw:
    """The law L(N, D) = E + A / N^alpha + B / D^beta, in nats per token (Chinchilla's approach 3)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss of a model of `parameters` after `tokens`."""
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def frontier(self, studied: tuple[float, float], source: str) -> Frontier:
        """The N that minimizes the loss under C = 6 N D: N = G (C / 6)^(beta / (alpha + beta))."""
        exponent = self.beta / (self.alpha + self.beta)
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta))
        return Frontier(float(scale * FLOPS_PER_PARAMETER**-exponent), float(exponent), studied, source)


def fitted_frontier(parameters: tuple[float, ...], flops: tuple[float, ...], source: str) -> Frontier:
    """The power law through optimal sizes, by least squares over the logarithms."""
    exponent, intercept = np.polyfit(np.log(flops), np.log(parameters), 1)
    return Frontier(float(math.exp(intercept)), float(exponent), (min(flops), max(flops)), source)


CHINCHILLA_LOSS = LossLaw(E=1.6934, A=406.4, B=410.7, alpha=0.3392, beta=0.2849)
_CHINCHILLA_STUDIED = (6e18, 3e21)

LAWS: dict[str, Frontier] = {
    f'chinchilla{approach}': dataclasses.replace(
        fitted_frontier(CHINCHILLA_PARAMETERS, CHINCHILLA_FLOPS[approach], f'arXiv:2203.15556 approach {approach}'),
        studied=_CHINCHILLA_STUDIED,
    )
    for approach in (1, 2)
}
LAWS['chinchilla3'] = CHINCHILLA_LOSS.frontier(_CHINCHILLA_STUDIED, 'arXiv:2203.15556 approach 3')
LAWS['palm2'] = Frontier(PALM2_PARAMETERS / PALM2_FLOPS**0.5, 0.5, (1e19, 1e22), 'arXiv:2305.10403 section 2')
"""The published laws by name."""


def find_law(name: str) -> Frontier:
    """The law of --law.

    Raises:
        UserError: an unknown name.
    """
    if name not in LAWS:
        raise UserError(f'--law={name} is not known{did_you_mean(name, LAWS)}. Set one of {", ".join(LAWS)}')
    return LAWS[name]
