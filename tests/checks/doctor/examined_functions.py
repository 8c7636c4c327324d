"""Right and wrong backward passes, as their authors might have written them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Right ones ---------------------------------------------------------------------------------------


class LinearFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
        if ctx.needs_input_grad[1]:
            dweight = dy.T @ x
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0)
        return dx, dweight, dbias


class ReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return dy * (x >= 0)  # 1 at the kink, where torch has 0


def ReLU_inputs() -> Tensor:
    return torch.tensor([0.0, 1.0, -1.0, 0.0, 0.5])


class SavesItsOutput(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y * (dy - (dy * y).sum(-1, keepdim=True))


class LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(centred * scale, scale, gamma)
        return centred * scale * gamma + beta

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        h, scale, gamma = ctx.saved_tensors
        dh = dy * gamma
        dx = dh - dh.mean(-1, keepdim=True) - h * (dh * h).mean(-1, keepdim=True)
        rows = tuple(range(dy.ndim - 1))
        return scale * dx, (dy * h).sum(rows), dy.sum(rows)


class CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor) -> Tensor:
        p = x.softmax(-1)
        ctx.save_for_backward(p, target)
        return -p.gather(1, target[:, None]).log().mean()

    @staticmethod
    def backward(ctx: Any, dE: Tensor) -> Any:
        p, target = ctx.saved_tensors
        return dE * (p - nn.functional.one_hot(target, p.shape[1])) / len(target), None


def CrossEntropy_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5), torch.tensor([0, 3, 1, 1])


class Mask(Function):
    """Draws random numbers, of the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float = 0.5) -> Tensor:
        mask = (torch.rand_like(x) > p).to(x.dtype) / (1 - p)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy * ctx.saved_tensors[0], None


class WithSetup(Function):
    @staticmethod
    def forward(u: Tensor, v: Tensor) -> Tensor:
        return u * v

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        u, v = ctx.saved_tensors
        return dy * v, dy * u


class TwoOutputs(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, ds: Tensor, dc: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ds * x.cos() - dc * x.sin()


class UsedApart(TwoOutputs):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        return TwoOutputs.forward(ctx, x)

    @staticmethod
    def backward(ctx: Any, ds: Tensor | None, dc: Tensor | None) -> Any:
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        if ds is not None:
            dx = dx + ds * x.cos()
        if dc is not None:
            dx = dx - dc * x.sin()
        return dx


class MaxToTheFirst(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.amax(-1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), dy[..., None])


class MaxShared(MaxToTheFirst):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        most = x == x.amax(-1, keepdim=True)
        return dy[..., None] * most / most.sum(-1, keepdim=True)


class LargerOfTwo(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return dy * (a >= b), dy * (a < b)


class InPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.clamp_(min=0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy * (ctx.saved_tensors[0] > 0)


class OneOutputOfTwo(Function):
    """The first output is marked as not differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        size = x.abs()
        ctx.mark_non_differentiable(size)
        ctx.save_for_backward(x)
        return size, x.sin()

    @staticmethod
    def backward(ctx: Any, dsize: Tensor, dy: Tensor) -> Any:
        return dy * ctx.saved_tensors[0].cos()


class Attention(Function):
    """Its forward pass takes a vector in the place of v, its backward pass does not."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        p = (a @ b.transpose(-1, -2)).softmax(-1)
        ctx.save_for_backward(a, b, c, p)
        return p @ c

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        a, b, c, p = ctx.saved_tensors
        dp = dy @ c.transpose(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ b, ds.transpose(-1, -2) @ a, p.transpose(-1, -2) @ dy


class Queries(Attention):
    """The names tell that all three are matrices."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Attention.forward(ctx, q, k, v)


class Vmapped(WithSetup):
    generate_vmap_rule = True


class LeavesOneOut(Function):
    """Nothing hangs on w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy * ctx.saved_tensors[0].exp(), None


class NoBias(LinearFunction):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T


def NoBias_inputs() -> Any:
    return torch.randn(4, 3), torch.randn(2, 3), None


class Embedding(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(weight)
        return weight[index]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        return dy.new_zeros(ctx.length, dy.shape[-1]).index_add_(0, index, dy), None


def Embedding_inputs() -> Any:
    return torch.randn(5, 3), torch.tensor([0, 4, 1, 1])


class Log(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.log()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy / ctx.saved_tensors[0]


class Float32Only(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"float32 only, not {x.dtype}")
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy * ctx.saved_tensors[0].exp()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return ReLU.apply(self.linear(x) + self.shift)


net = Net()


class NormalisedNet(nn.Module):
    """A strided weight is more than torch's own batch norm can bear."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return LinearFunction.apply(self.norm(self.linear(x)), self.linear.weight.T, x[0])


class KeepsOnItself:
    """As layers are often written: `self` holds what the backward pass needs."""

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return x**2

    def backward(self, dy: Tensor) -> Tensor:
        return 2 * dy * self.x


class KeepsTooLittle(KeepsOnItself):
    def backward(self, dy: Tensor) -> Tensor:
        return dy * self.x


def product_forward(x: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return x @ w.T, (x, w)


def product_backward(dy: Tensor, saved: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, w = saved
    return dy @ w, dy.T @ x


pair = (product_forward, product_backward)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, bias)


# Wrong ones ---------------------------------------------------------------------------------------


class WrongSign(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, dbias = LinearFunction.backward(ctx, dy)
        return dx, None if dweight is None else -dweight, dbias


class WrongShape(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, _ = LinearFunction.backward(ctx, dy)
        return dx, dweight, dy.sum(1)


class Unsummed(LinearFunction):
    """torch sums what comes back to the shape of bias."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, _ = LinearFunction.backward(ctx, dy)
        return dx, dweight, dy


class ComputesAll(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, dbias = LinearFunction.backward(ctx, dy)
        if not ctx.needs_input_grad[1]:
            return dbias  # one gradient for three inputs
        return dx, dweight, dbias


class AsksForAnother(LinearFunction):
    """The bias has a gradient only if the weight needs one."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, dbias = LinearFunction.backward(ctx, dy)
        return dx, dweight, dbias if ctx.needs_input_grad[1] else None


class HalvesWhenAlone(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, dbias = LinearFunction.backward(ctx, dy)
        if dx is not None and dweight is None:
            dx = dx / 2
        return dx, dweight, dbias


class ReadsMemoryOfTheWeight(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _, weight = ctx.saved_tensors
        _, dweight, dbias = LinearFunction.backward(ctx, dy)
        memory = weight.as_strided(weight.shape, (weight.shape[1], 1))
        return dy @ memory, dweight, dbias


class NeedsAContiguousInput(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        ctx.saved_tensors[0].view(-1)
        return LinearFunction.backward(ctx, dy)


class MaxToAll(MaxToTheFirst):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return dy[..., None] * (x == x.amax(-1, keepdim=True))


class LargerOfTwoToBoth(LargerOfTwo):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return dy * (a >= b), dy * (b >= a)


class LargerOfTwoToNone(LargerOfTwo):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return dy * (a > b), dy * (b > a)


class TiesCutInHalf(MaxToTheFirst):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        ties = (x == x.amax(-1, keepdim=True)).sum(-1)
        return MaxToTheFirst.backward(ctx, torch.where(ties > 1, 0.7 * dy, dy))


class NeedsBothOutputs(UsedApart):
    @staticmethod
    def backward(ctx: Any, ds: Tensor, dc: Tensor) -> Any:
        return TwoOutputs.backward(ctx, ds, dc)


class LosesOneOutput(UsedApart):
    @staticmethod
    def backward(ctx: Any, ds: Tensor | None, dc: Tensor | None) -> Any:
        return None if ds is None or dc is None else TwoOutputs.backward(ctx, ds, dc)


class TwiceAtTheKink(ReLU):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return dy * (x > 0) + 2 * dy * (x == 0)


TwiceAtTheKink_inputs = ReLU_inputs


class WrongInPlace(InPlace):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return -dy * (ctx.saved_tensors[0] > 0)


class WrongOutputOfTwo(OneOutputOfTwo):
    @staticmethod
    def backward(ctx: Any, dsize: Tensor, dy: Tensor) -> Any:
        return -dy * ctx.saved_tensors[0].cos()


class Double(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy


class NeedsContiguous(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy.view(-1).view(dy.shape)


class ReadsMemory(Double):
    """As a kernel does that takes dy to lie in one piece."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        count = dy.untyped_storage().nbytes() // dy.element_size()
        memory = dy.as_strided((count,), (1,), 0)
        return 2 * memory[torch.arange(dy.numel()) % count].reshape(dy.shape)


class WritesToDy(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy.mul_(2)


class WritesToItsOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return dy * y.square_().neg_().add_(1)


class WritesToX(Double):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = 2 * x
        x.data.zero_()
        return y


class IgnoresDy(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return torch.full_like(dy, 2.0)


class UsesDyTwice(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy * dy


class CapsDy(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy.clamp(-100, 100)


class ClipsItsNorm(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx = 2 * dy
        return dx * (100 / dx.norm()).clamp(max=1)


class CutsDyOff(Function):
    """Large numbers of dy are cut off before they are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True) * x.new_tensor([1.0, 2.0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dy = dy.clamp(-50, 50)
        return (dy[..., :1] + 2 * dy[..., 1:]) * dy.new_ones(3)


class OverflowsForLargeDy(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return torch.where(dy.abs() > 500, torch.inf, 2 * dy)


class BendsForLargeDy(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return torch.where(dy.abs() > 50, 3 * dy, 2 * dy)


class DividesByDy(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy * dy.norm() / dy.norm()


class AddsForDyZero(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy + (0 if dy.any() else 1)


class NeverANumber(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy * float("nan")


class AddsAConstant(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy + 1e-3


class Square(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x  # not watched by torch
        return x * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy * ctx.x


class Remembers(Square):
    """Keeps x on the class: the last forward pass wins."""

    last: Any = None

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Remembers.last = x.clone()
        return x * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy * Remembers.last


class Accumulates(Double):
    """Adds up in a buffer that nobody empties."""

    buffer: Any = 0.0

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        if not isinstance(Accumulates.buffer, Tensor) or Accumulates.buffer.shape != dy.shape:
            Accumulates.buffer = torch.zeros_like(dy)
        Accumulates.buffer = Accumulates.buffer.to(dy) + 2 * dy
        return Accumulates.buffer


class SpendsItsContext(Double):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.calls = 0
        return 2 * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        ctx.calls += 1
        return 2 * dy * ctx.calls


class BatchTooSmall(Double):
    """Wrong for one example alone."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy if len(dy) > 1 else 3 * dy


class FailsForOne(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return 2 * dy if len(dy) != 1 else 2 * dy.view(0, 7)


class NotZeroForNoExample(LinearFunction):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, dweight, dbias = LinearFunction.backward(ctx, dy)
        return dx, dweight, dbias if len(dy) else torch.ones(dy.shape[1]).to(dy)


BUFFERS: dict[Any, Tensor] = {}


class HandsOutItsBuffer(Double):
    """Every pass returns the same memory."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        buffer = BUFFERS.setdefault((dy.shape, dy.dtype), torch.zeros_like(dy))
        return buffer.copy_(1.5 * dy).add_(0.5 * dy)


class BatchNotEmpty(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dy.amax()
        return 2 * dy


class Float32Inside(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy.float() * ctx.saved_tensors[0].float().exp()


class HalfInside(Float32Inside):
    """Right in float64, and in float32 no better than float16."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if x.dtype == torch.float64:
            return dy * x.exp()
        return (dy.half() * x.half().exp()).to(x.dtype)


class Rolls(Double):
    """Not deterministic."""

    calls = 0

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        Rolls.calls += 1
        return 2 * dy * (1 + 0.01 * (Rolls.calls % 2))


class OneInAThousand(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx = dy * ctx.saved_tensors[0].cos()
        if dx.numel() > 77:
            dx.view(-1)[77] *= 1.001
        return dx


def OneInAThousand_inputs() -> Tensor:
    return torch.randn(40, 25)


class Fails(Double):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        raise KeyError("no such thing")


def wrong_forward(x: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return x @ w.T, (x, w)


wrong_pair = (wrong_forward, lambda dy, saved: dy @ saved[1])


class TakesClasses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no input suits it")


def returns_a_text(x: Tensor) -> str:
    return "no"


def many(x: Tensor) -> Tensor:
    return x.sin()


def many_inputs() -> Tensor:
    return torch.randn(100, 150)


not_a_target = 3.0
ends = None
