"""Fit the constants of `keras_vd.kl.molchanov_by_snr` and print them.

    python -m tools.fit_molchanov                # about 10 s on one core

With the signal-to-noise ratio s = exp(-log_alpha / 2), Molchanov's sigmoid is

    sigmoid(-k2 - k3 log_alpha) = 1 / (1 + exp(k2) s^(-2 k3)),

where 2 k3 = 2.9739 is nearly 3. What is left of the power, s^(3 - 2 k3), hardly
changes where the sigmoid does: a ratio q(s) / p(s) of two cubic polynomials
stands for it,

    sigmoid ~ s^3 p(s) / (s^3 p(s) + exp(k2) q(s)),

which takes neither a logarithm nor an exponential. All coefficients are
positive, so nothing cancels in float32. The fit minimises the largest absolute
error.
"""

import numpy as np

from keras_vd.divergences import kl
from tools.fit_exact_kl import polish

K1, K2, K3 = kl._MOLCHANOV_K1, kl._MOLCHANOV_K2, kl._MOLCHANOV_K3
DEGREE = 3
# Squares of bottom = s^3 p(s) + exp(k2) q(s) neither overflow nor underflow in
# float32, for all s from 0 to exp(10).
SCALE = 1e-14

LOG_ALPHA = np.linspace(-22.0, 22.0, 3001)
SNR = np.exp(-LOG_ALPHA / 2)
SIGMOID = 1 / (1 + np.exp(K2 + K3 * LOG_ALPHA))


def polynomials(logarithms):
    """Coefficients of p and q, highest power first; p's first is 1."""
    coefficients = np.exp(logarithms)
    return np.r_[1.0, coefficients[:DEGREE]], coefficients[DEGREE:]


def evaluate(logarithms):
    p, q = polynomials(logarithms)
    top = SNR**3 * np.polyval(p, SNR)
    return top / (top + np.exp(K2) * np.polyval(q, SNR))


def main():
    """Fit and print the constants and their errors in double precision."""
    error, logarithms = polish(
        np.zeros(2 * DEGREE + 1), lambda x: evaluate(x) - SIGMOID, 150
    )
    sigmoid = evaluate(logarithms)
    slope = sigmoid * (1 - sigmoid) - SIGMOID * (1 - SIGMOID)
    print(f"value: max error {K1 * error:.2e} nats")
    print(f"slope: max error {K1 * K3 * np.abs(slope).max():.2e} nats")
    p, q = polynomials(logarithms)
    for name, polynomial in (("_TOP", p), ("_REST", np.exp(K2) * q)):
        numbers = ", ".join(f"{c:.9g}" for c in SCALE * polynomial)
        print(f"{name} = ({numbers})")


if __name__ == "__main__":
    main()
