"""Compiles Triton kernels for GPUs that need not be present."""

from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# compute capability, shared memory that one program may use
GPUS = {"A100": (80, 166912), "RTX-4090": (89, 101376), "H200": (90, 232448)}


def ptxas_missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        knobs.nvidia.ptxas  # noqa: B018  looks the assembler up
    except Exception as error:
        return f"no ptxas: {error}"
    return None


def build(kernel, capability, types, constants, **options):
    """The compiled kernel. types: of the arguments by name; others ending in _ptr are int32, the rest i32."""
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*i32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    # PyTorch's tensors are aligned to 16 bytes; Triton finds that out at launch.
    attributes = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if signature[name][0] == "*"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)
