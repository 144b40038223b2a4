"""Train, prune and export sparse networks on MNIST or digits.

    python examples/mnist.py --dataset digits
    python examples/mnist.py --model lenet-5 --method sparse_vd --seed 0

The code and its options are those of `experiments/mnist`.
"""

from _launch import launch

if __name__ == "__main__":
    launch("mnist")
