"""A device with CUDA's rules and the processor's numbers, in Python alone.

Its tensors hold a tensor of the processor, on which every operation is carried out; what they do not do is mix:

- all tensors of an operation are on this device, or are single numbers of the processor, or its indices;
- nothing leaves without `.cpu()` (or one number by `.item()` and what stands on it);
- random numbers of this device come from a generator of this device, and no others do;
- autocast has CUDA's lists: what is computed in bfloat16, what in float32;
- operations that have no deterministic algorithm on CUDA raise where those are asked for.

Importing this module makes the device. It has to be before the process's first backward pass, for which torch starts a
thread for each device that there is; pytest imports it while it collects.
"""

from __future__ import annotations

import copy
import threading

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "strict"
DEVICE = torch.device("privateuseone", 0)  # prints as strict:0 once it has its name
CPU = torch.device("cpu")

MIXED = "Expected all tensors to be on the same device, but found at least two devices, {device} and cpu! ({op})"
OTHER_GENERATOR = "Expected a '{wanted}' device type for generator but found '{found}'"
NOT_TO_NUMPY = "can't convert {device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory"
NOT_DETERMINISTIC = "{op} does not have a deterministic implementation, but you set use_deterministic_algorithms(True)"

CROSSING = {"aten::copy_", "aten::to", "aten::_to_copy", "aten::_copy_from"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # indices may be the host's

FACTORIES = ("arange", "eye", "fft_fftfreq", "fft_rfftfreq", "linspace", "logspace", "randperm", "range",
             "tril_indices", "triu_indices")  # fmt: skip

# `torch.use_deterministic_algorithms`: what raises on CUDA. Replication padding has a deterministic way there.
NO_ORDER = {f"aten::{name}" for name in (
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward",
    "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss_forward", "nll_loss2d_forward",
    "_ctc_loss_backward", "put_", "histc", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
)}  # fmt: skip
NO_ORDER_OF_INDICES = {"aten::median", "aten::nanmedian"}  # with a dimension

# ATen/autocast_mode.h, CUDA: by name, all overloads.
LOWER = ("_convolution", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d",
         "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "einsum", "linalg_vecdot", "linear",
         "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention")  # fmt: skip
HIGHER = ("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
          "sinh", "tan", "pow", "softplus", "layer_norm", "native_layer_norm", "group_norm", "frobenius_norm",
          "cosine_similarity", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "dist", "cdist", "renorm",
          "logsumexp", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
          "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "prod", "softmax", "log_softmax",
          "cumprod", "cumsum", "linalg_vector_norm", "linalg_matrix_norm", "sum", "norm")  # fmt: skip
WIDEST = ("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
          "scatter_add")  # fmt: skip


REFUSED: list[str] = []  # in backward passes
PYTHON = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)


class StrictTensor(torch.Tensor):
    """A tensor on the device; `held` is the processor's."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        # In inference mode a view of a tensor from outside of it would not be one, as torch expects: so none is.
        with torch.inference_mode(False):
            return torch.Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                layout=held.layout, device=DEVICE, requires_grad=False,
            )  # fmt: skip

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self):
        return f"StrictTensor({self.held})"

    def __deepcopy__(self, memo):
        new = StrictTensor(self.held.clone()).requires_grad_(self.requires_grad)
        new.__dict__ |= {key: copy.deepcopy(value, memo) for key, value in self.__dict__.items() if key != "held"}
        return new

    def __format__(self, spec):
        return format(self.item() if self.dim() == 0 else str(self), spec)

    def backward(self, *args, **kwargs):
        super().backward(*args, **kwargs)
        raise_refused()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(NOT_TO_NUMPY.format(device=self.device))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        op = func._schema.name
        _check(op, func, args, kwargs)
        wanted = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
        out = func(*pytree.tree_map(_unwrap, args), **pytree.tree_map(_unwrap, kwargs))
        written = _written(func, args, kwargs)
        if written is not None:
            return written
        if wanted and wanted[0].type == "cpu":
            return out
        return pytree.tree_map(lambda x: StrictTensor(x) if isinstance(x, torch.Tensor) else x, out)


class StrictGenerator(torch.Generator):
    """A generator of the device, with the processor's numbers."""

    @property
    def device(self) -> torch.device:
        return DEVICE


def generator(device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of any device; in the place of `torch.Generator`, which cannot make this device's."""
    return StrictGenerator() if torch.device(device).type == NAME else _Generator(device)


class OwnGenerators(TorchFunctionMode):
    """Refuse to draw the numbers of one device from a generator of the other; where this is entered."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = kwargs.get("generator")
        if found is not None:
            tensors = (x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
            on = kwargs.get("device") or next((x.device for x in tensors), CPU)
            if torch.device(on).type != found.device.type:
                raise RuntimeError(OTHER_GENERATOR.format(wanted=torch.device(on).type, found=found.device.type))
        return func(*args, **kwargs)


def _check(op: str, func, args, kwargs) -> None:
    leaves = pytree.tree_leaves((args, kwargs))
    if op not in CROSSING:
        checked = [args[0], *args[2:]] if op in INDEXED and isinstance(args[0], StrictTensor) else leaves
        if any(isinstance(x, torch.Tensor) and not isinstance(x, StrictTensor) and x.dim() for x in checked):
            _refuse(MIXED.format(device=DEVICE, op=op))
    if torch.get_deterministic_debug_mode() == 2 and (
        op in NO_ORDER
        or (op in NO_ORDER_OF_INDICES and len(args) > 1)
        or (op == "aten::bincount" and len(args) > 1 and args[1] is not None)
        or (op == "aten::cumsum" and args[0].is_floating_point())
    ):
        _refuse(NOT_DETERMINISTIC.format(op=op))


def _refuse(message: str) -> None:
    """Raise, or in a thread of torch's own, where that ends the whole process, keep for `backward` to raise."""
    if isinstance(threading.current_thread(), threading._DummyThread):
        REFUSED.append(message)
        return
    raise RuntimeError(message)


def raise_refused() -> None:
    """Raise what was refused in a backward pass."""
    if REFUSED:
        message = REFUSED[0]
        REFUSED.clear()
        raise RuntimeError(message)


def _written(func, args, kwargs):
    """Return the argument that an operation writes into, or a tuple of them; None where it makes something new."""
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if not names or not func._schema.returns:
        return None
    by_name = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
    written = [by_name[name] for name in names]
    for tensor in written:
        if isinstance(tensor, StrictTensor) and tensor.shape != tensor.held.shape:
            with torch._C._ExcludeDispatchKeyGuard(PYTHON):
                torch.ops.aten.as_strided_(tensor, tensor.held.shape, tensor.held.stride())
    if len(func._schema.returns) != len(written):
        return None
    return written[0] if len(written) == 1 else tuple(written)


def _unwrap(x):
    if isinstance(x, torch.device):
        return CPU
    return x.held if isinstance(x, StrictTensor) else x


def _cast(tensors, dtype: torch.dtype):
    """Return arguments with this device's floating-point tensors, but for double ones, in this type."""

    def cast(x):
        fits = isinstance(x, StrictTensor) and x.is_floating_point() and x.dtype not in (torch.float64, dtype)
        return x.to(dtype) if fits else x

    return pytree.tree_map(cast, tensors)


def _autocast_kernel(overload, choose):
    """Return what autocast does before an operation: `choose` says of its arguments in which type it is computed."""

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            args, kwargs = _cast((args, kwargs), choose((args, kwargs)))
            return overload(*args, **kwargs)

    return kernel


def _widest(arguments) -> torch.dtype:
    kinds = {x.dtype for x in pytree.tree_leaves(arguments) if isinstance(x, StrictTensor)}
    return torch.float32 if torch.float32 in kinds else torch.bfloat16


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return StrictTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _factory(overload):
    """Return what makes a tensor on the device that the processor makes as well."""

    def make(*args, device=None, pin_memory=None, **kwargs):
        return StrictTensor(overload(*args, device=CPU, **kwargs))

    return make


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return StrictTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    _unwrap(target).copy_(_unwrap(source))
    return target


class _Module:
    """What torch wants to find as `torch.strict`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: random numbers without a generator are the processor's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _libraries() -> list[torch.library.Library]:
    """Register what torch does on the device; the registrations last as long as what is returned."""
    library = torch.library.Library("aten", "IMPL")
    for name, made in (("empty.memory_format", _empty), ("empty_strided", _empty_strided), ("_copy_from", _copy_from)):
        library.impl(name, made, "PrivateUse1")
    for name in FACTORIES:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if "out" not in overload:
                full = name if overload == "default" else f"{name}.{overload}"
                library.impl(full, _factory(getattr(packet, overload)), "PrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    kinds = ((LOWER, lambda _: torch.bfloat16), (HIGHER, lambda _: torch.float32), (WIDEST, _widest))
    for names, choose in kinds:
        for name in names:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                schema = getattr(packet, overload)._schema
                if overload in ("out", "") or any(a.is_out for a in schema.arguments) or "Dimname" in str(schema):
                    continue
                full = name if overload == "default" else f"{name}.{overload}"
                library.impl(full, _autocast_kernel(getattr(packet, overload), choose), "AutocastPrivateUse1")
    return [library, rest]


_Generator = torch.Generator
_setup_privateuseone_for_python_backend(NAME, _Module())
_KEPT = _libraries()
